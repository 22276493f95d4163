"use strict";
// Moves along curves that are in the page: a step of the slider reads numbers between two strengths and writes them.
(() => {
  const views = JSON.parse(document.getElementById("data").textContent);
  const PER = {{ steps_between }};  // steps of the slider between two strengths
  const at = id => document.getElementById(id);
  const slider = at("alpha"), layer = at("layer"), prompt = at("prompt");
  let view = views[0], after = null, rows = [], cursors = [];

  const SVG = "http://www.w3.org/2000/svg";
  function node(name, attributes = {}, text = "", parent = null) {
    const made = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== "") made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }
  const plain = text => text.replace("-", "\u2212");
  const number = (value, digits = 3) => plain(value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(digits)));
  const percent = p => p >= 0.0995 ? (100 * p).toFixed(1) + " %" : p >= 0.00095 ? (100 * p).toFixed(2) + " %" : p > 0.00005 ? (100 * p).toFixed(3) + " %" : "< 0.005 %";
  const nats = value => (value >= 0.9995 ? value.toFixed(2) : value >= 0.0995 ? value.toFixed(3) : number(value, 2)) + " nats";

  // --- curves ---------------------------------------------------------------------------------------------------------

  const last = () => view.alphas.length - 1;
  function between(values, step) {
    const low = Math.min(Math.floor(step / PER), last()), high = Math.min(low + 1, last()), part = step / PER - low;
    return values[low] + part * (values[high] - values[low]);
  }
  const stepOf = alpha => Math.round(PER * last() * alpha / view.alphas[last()]);

  function ticks(most, room) {
    const raw = most / room, power = 10 ** Math.floor(Math.log10(raw));
    const size = power * [1, 2, 5, 10].find(factor => factor * power >= raw);
    return Array.from({ length: Math.floor(most / size * (1 + 1e-9)) + 1 }, (_, k) => +(k * size).toPrecision(6));
  }

  function chart(id, height, top, lines, limit, label, marked) {
    const box = at(id), width = Math.max(280, box.getBoundingClientRect().width);
    const left = 44, right = 12, above = 16, below = marked ? 34 : 8, far = view.alphas[last()], sign = Math.sign(far) || 1;
    box.replaceChildren();
    box.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const x = alpha => left + (width - left - right) * alpha / far;
    const y = value => above + (height - above - below) * (1 - Math.min(value, 1.2 * top) / top);
    const put = (name, attributes, text = "") => node("svg:" + name, attributes, text, box);
    for (const tick of ticks(top, height / 45)) {
      put("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) });
      put("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, label(tick));
    }
    if (view.alpha !== null) {
      const ends = (view.interval ?? []).map(a => Math.min(Math.max(x(a), left), width - right)).sort((a, b) => a - b);
      if (ends.length) put("rect", { class: "band", x: ends[0], width: Math.max(ends[1] - ends[0], 1), y: above, height: height - above - below });
      put("line", { class: "chosen", x1: x(view.alpha), x2: x(view.alpha), y1: above, y2: height - below });
    }
    if (limit !== null && limit < top) {
      put("line", { class: "limit", x1: left, x2: width - right, y1: y(limit), y2: y(limit) });
      put("text", { class: "mark", x: left + 4, y: y(limit) - 5 }, marked ? `budget ${number(limit)}` + (width > 480 ? ` (${view.statistic_words})` : "") : `asked for ${percent(limit)}`);
    }
    for (const [values, look] of lines) {
      put("path", { class: "line " + look, d: values.map((value, k) => `${k ? "L" : "M"}${x(view.alphas[k]).toFixed(1)} ${y(value).toFixed(1)}`).join("") });
    }
    const cursor = put("line", { class: "cursor", y1: above, y2: height - below });
    const dots = lines.map(() => put("circle", { class: "dot", r: 4.5 }));
    if (marked) {
      for (const tick of ticks(Math.abs(far), width / 75)) {
        put("text", { x: x(sign * tick), y: height - below + 16, "text-anchor": "middle" }, plain(String(sign * tick || 0)));
      }
      put("text", { x: width - right, y: height - 3, "text-anchor": "end" }, "strength α");
      let before = -Infinity, raised = false;
      const inside = view.bounds.filter(bound => Math.abs(bound.alpha) <= Math.abs(far));
      for (const bound of inside.sort((a, b) => Math.abs(a.alpha) - Math.abs(b.alpha))) {
        const here = x(bound.alpha), floor = height - below;
        raised = here - before < 34 && !raised;
        const mark = put("path", { class: "bound", d: `M${here} ${floor - 10}L${here - 6} ${floor}L${here + 6} ${floor}Z` });
        node("svg:title", {}, bound.words, mark);
        put("text", { class: "mark", x: here, y: floor - (raised ? 28 : 14), "text-anchor": "middle" }, bound.name);
        before = here;
      }
    } else if (view.alpha !== null) {
      put("text", { class: "mark", x: x(view.alpha), y: 11, "text-anchor": "middle" }, `chosen ${number(view.alpha)}`);
    }
    box.onpointerdown = box.onpointermove = event => {
      if (event.type === "pointermove" && !event.buttons) return;
      const spot = box.getBoundingClientRect(), inside = (event.clientX - spot.left) * width / spot.width;
      slider.value = Math.round((inside - left) / (width - left - right) * slider.max);
      show();
    };
    cursors.push(step => {
      const here = x(far * step / (PER * last()));
      cursor.setAttribute("x1", here); cursor.setAttribute("x2", here);
      lines.forEach(([values], k) => { dots[k].setAttribute("cx", here); dots[k].setAttribute("cy", y(between(values, step))); });
    });
  }

  function draw() {
    cursors = [];
    const benefit = Math.max(...view.share, view.wanted ?? 0) * 1.1;
    chart("share", 150, benefit, [[view.share, "is-benefit"]], view.wanted, value => +(100 * value).toPrecision(3) + " %", false);
    const looks = { mean: "", p95: "dashed", max: "dotted" };
    const lines = view.statistics.map(name => [view.cost[name], "is-cost " + looks[name]]);
    const price = Math.max(...lines.flatMap(([values]) => values), (view.budget ?? 0) * 1.2) * 1.05;
    chart("cost", 260, price, [...lines, [view.least, "is-benefit mixed"]], view.budget, String, true);
  }

  function keys() {
    const list = at("keys"), names = { mean: "KL, mean", p95: "KL, 95th percentile", max: "KL, largest" };
    list.replaceChildren();
    const add = (look, text) => {
      const item = node("li", {}, "", list), swatch = node("svg:svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, "", item);
      node("svg:" + (look === "band" ? "rect" : "path"), look === "band" ? { class: look, x: 0, y: 0, width: 26, height: 10 } : { class: "line " + look, d: "M0 5H26" }, "", swatch);
      item.append(text);
    };
    const looks = { mean: "", p95: "dashed", max: "dotted" };
    for (const name of view.statistics) add("is-cost " + looks[name], names[name]);
    add("is-benefit mixed", "least for this share (N15)");
    if (view.alpha !== null) add("band", "90 % of prompt samples");
    for (const bound of view.bounds) {
      if (Math.abs(bound.alpha) <= Math.abs(view.alphas[last()])) node("li", {}, `△ ${bound.name}: ${bound.short}`, list);
    }
  }

  // --- what is chosen ---------------------------------------------------------------------------------------------------

  function chooseLayer() {
    const kept = view.alphas[last()] ? slider.value / slider.max : 0, first = rows.length === 0;
    view = views[+layer.value];
    at("verdict").textContent = view.verdict;
    at("verdict").classList.toggle("bad", view.alpha === null);
    at("summary").textContent = view.summary;
    for (const kind of ["theorems", "under_assumptions", "measured"]) {
      at(kind).replaceChildren(...(view.guarantees[kind].length ? view.guarantees[kind] : ["nothing"]).map(words => node("li", {}, words)));
    }
    const which = Math.max(+prompt.value || 0, 0);
    prompt.replaceChildren(...view.prompts.map((one, k) => node("option", { value: k }, one.text.length > 60 ? "…" + one.text.slice(-59) : one.text)));
    prompt.value = Math.min(which, view.prompts.length - 1);
    slider.max = PER * last();
    slider.value = first ? Math.min(stepOf(view.unit), slider.max) : Math.round(kept * slider.max);
    at("now-other-name").textContent = view.statistics[1] === "p95" ? "KL, 95th percentile" : "KL, largest";
    at("error").textContent = number(100 * view.error, 1);
    const jumps = [[0, "no steering"], [view.unit, view.alpha === null ? `α = ${number(view.unit)}` : "the chosen α"], [2 * view.unit, "twice that"]];
    at("jumps").replaceChildren(...jumps.map(([alpha, words]) => {
      const button = node("button", { type: "button" }, words);
      button.disabled = stepOf(alpha) > +slider.max;
      button.onclick = () => { slider.value = stepOf(alpha); show(); };
      return button;
    }));
    keys();
    draw();
    choosePrompt();
  }

  function choosePrompt() {
    after = view.prompts[+prompt.value];
    at("context").textContent = after.text;
    const list = at("bars"), most = Math.max(...after.tokens.flatMap(token => token.p));
    const top = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1].find(level => level >= most) ?? 1;
    at("scale").textContent = `A full bar is ${Math.round(100 * top)} %.`;
    list.replaceChildren();
    rows = after.tokens.map(token => {
      const item = node("li", token.member ? { class: "member" } : {}, "", list);
      node("span", { class: "word", title: token.word + (token.member ? " (of the concept)" : "") }, token.word.replace(/\n/g, "↵").replace(/^ /, "␣") || "␣", item);
      const rail = node("span", { class: "rail", "aria-hidden": "true" }, "", item);
      const bar = node("span", { class: "bar" }, "", rail);
      node("span", { class: "before", style: `left: ${(100 * token.p[0] / top).toFixed(2)}%` }, "", rail);
      return { p: token.p, bar, top, value: node("span", { class: "value" }, "", item) };
    });
    const rest = node("li", { class: "rest" }, "", list);
    node("span", { class: "word" }, "all others", rest);
    node("span", {}, "", rest);
    rows.rest = node("span", { class: "value" }, "", rest);
    at("texts").replaceChildren(...view.multiples.map((multiple, k) => {
      const card = node("article", { "data-step": stepOf(multiple * view.unit) });
      node("h3", {}, multiple === 0 ? "Without steering" : `At α = ${number(multiple * view.unit)}` + (view.alpha === null ? "" : multiple === 1 ? ", the chosen one" : ", twice the chosen one"), card);
      const text = node("p", {}, "", card);
      node("span", { class: "prompt" }, after.text, text);
      text.append(after.completions[k]);
      return card;
    }));
    if (!view.multiples.length) at("texts").textContent = "There is no tokenizer to read it with.";
    show();
  }

  // --- a step of the slider ---------------------------------------------------------------------------------------------

  function show() {
    const step = +slider.value, alpha = view.alphas[last()] * step / (PER * last());
    const share = between(view.share, step), mean = between(view.cost.mean, step), other = between(view.cost[view.statistics[1]], step);
    at("value").textContent = number(alpha, 4);
    slider.setAttribute("aria-valuetext", `α ${number(alpha, 4)}: share ${percent(share)}, cost ${nats(mean)} per token`);
    at("now-share").textContent = at("brief-share").textContent = percent(share);
    at("now-mean").textContent = at("brief-cost").textContent = nats(mean);
    at("now-other").textContent = nats(other);
    at("now-least").textContent = nats(Math.max(between(view.least, step), 0));
    const over = name => view.budget !== null && view.statistic === name && between(view.cost[name], step) > 1.02 * view.budget;
    at("now-mean").classList.toggle("over", over("mean"));
    at("now-other").classList.toggle("over", over(view.statistics[1]));
    at("next-share").textContent = percent(between(after.share, step));
    at("next-cost").textContent = nats(between(after.kl, step));
    let sum = 0;
    for (const row of rows) {
      const p = between(row.p, step);
      sum += p;
      row.bar.style.transform = `scaleX(${Math.min(p / row.top, 1)})`;
      row.value.textContent = percent(p);
    }
    rows.rest.textContent = percent(Math.max(1 - sum, 0));
    for (const move of cursors) move(step);
    const cards = [...at("texts").querySelectorAll("article")], off = card => Math.abs(card.dataset.step - step);
    const nearest = cards.reduce((best, card) => best === null || off(card) < off(best) ? card : best, null);
    for (const card of cards) card.classList.toggle("near", card === nearest);
  }

  slider.addEventListener("input", show);
  layer.addEventListener("change", chooseLayer);
  prompt.addEventListener("change", choosePrompt);
  let width = 0;
  new ResizeObserver(() => {
    const now = at("cost").getBoundingClientRect().width;
    if (Math.abs(now - width) > 1) { width = now; draw(); show(); }
  }).observe(at("cost"));
  chooseLayer();
})();
