"""The page of a choice: what is written, and what a person sees and does in a real browser."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import sim
import ufm
from sim.choosing.page import STEPS_BETWEEN, write_page
from sim.choosing.search import choose
from tests.browser import loaded
from tests.sim.bridge.test_model import letters

RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(3, 29, size=size).tolist() for size in (9, 4, 30)]
V = RNG.normal(size=32)
TOKENS = [4, 9, 20]


@pytest.fixture(scope="module")
def choices(small):
    """The model, and what was chosen: at block 1 a strength, at block 0 none."""
    lm = replace(small("llama"), tokenizer=letters(), name="a </script> model")
    with ufm.in_float64():
        options = {"horizon": 6, "tokens": TOKENS}
        strong = choose(lm, sim.Steering({1: sim.Add(V)}), PROMPTS, budget=0.3, **options)
        return lm, [strong, choose(lm, sim.Steering({0: sim.Add(V)}), PROMPTS, share=0.9999, **options)]


@pytest.fixture(scope="module")
def page(choices, tmp_path_factory):
    lm, both = choices
    with ufm.in_float64():
        return write_page(lm, both, PROMPTS, tmp_path_factory.mktemp("page") / "new")


def views_of(page):
    html = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S).group(1))


def test_one_file_is_all_it_needs(page):
    html = page.read_text(encoding="utf-8")
    assert page.name == "index.html"
    assert len(html) < 1_000_000
    assert "a </script> model" not in html
    links = [link for link in re.findall(r'href="([^"]*)"', html) if not link.startswith("https://arxiv.org/abs/")]
    assert loaded(html) == []
    assert links == [
        # Where no script runs, the figure leads to its file.
        "figures/choice-1.svg",
        "choice.nc",
        *(f"figures/choice-{layer}.{kind}" for layer in (1, 0) for kind in ("pdf", "png", "svg")),
        "guide/glossary.html",
        "guide/practice.html",
    ]
    for name in links:
        assert (page.parent / name).stat().st_size > 1000, name


def test_its_numbers_are_those_of_the_file_beside_it(page, choices):
    _, both = choices
    for view, choice in zip(views_of(page), both, strict=True):
        with xr.open_dataset(page.parent / "choice.nc", group=f"block-{choice.layer}", engine="h5netcdf") as data:
            np.testing.assert_allclose(view["share"], data["share"], rtol=1e-3)
            np.testing.assert_allclose(view["cost"]["mean"], data["cost"].sel(statistic="mean"), rtol=1e-5, atol=1e-12)
            p = [token["p"] for token in view["prompts"][1]["tokens"]]
            np.testing.assert_allclose(p, data["probability"].isel(prompt=1), atol=1e-6)
            assert view["prompts"][2]["completions"] == data["completion"].isel(prompt=2).values.tolist()
        assert view["alpha"] == choice.alpha
    with xr.open_datatree(page.parent / "choice.nc", engine="h5netcdf") as tree:
        assert tree.attrs["seed"] == "0"


def test_the_first_paragraph_says_what_was_found(page, choices):
    (strong, none), (chosen, unreached) = views_of(page), choices[1]
    for part in (f"strength {chosen.alpha:.3g}", f"{chosen.cost.mean:.2g} nats", "measured", "theorem", "assumption", "N18"):
        assert part in strong["summary"]
    assert f"from {100 * chosen.share[0]:.2g} % to {100 * chosen.share[1]:.2g} %" in strong["summary"]
    assert none["summary"].startswith("No strength was chosen for")
    assert unreached.reason in none["summary"]
    assert "N18" not in none["summary"]  # there is no budget that it would keep to
    assert none["bounds"] == []
    assert [bound["name"] for bound in strong["bounds"]] == ["N18", "N20"]


@pytest.mark.parametrize("case", ["none", "the same block", "a file"])
def test_nothing_is_written_for_bad_input(choices, case, tmp_path):
    lm, both = choices
    (tmp_path / "file").write_text("")
    given, out, argument = {
        "none": ([], "new", "choices"),
        "the same block": ([both[0]] * 2, "new", "choices"),
        "a file": (both, "file", "out"),
    }[case]
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        write_page(lm, given, PROMPTS, tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- in a browser --------------------------------------------------------------------------------------------------------


def text(window, name):
    return window.value(f"document.getElementById('{name}').textContent")


def shown(window):
    """What a person reads."""
    names = ("value", "now-share", "now-mean", "now-other", "next-share", "next-cost")
    bars = window.value("[...document.querySelectorAll('#bars .value')].map(node => node.textContent)")
    return {name: text(window, name) for name in names} | {"bars": bars}


def number(words):
    return float(words.removeprefix("< ").split()[0].replace("\N{MINUS SIGN}", "-"))


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, False), (1200, True), (390, True)])
def test_the_slider_by_keyboard(window, page, width, dark):
    window.open(page, width=width, height=800, dark=dark)
    view, last = views_of(page)[0], 50 * STEPS_BETWEEN
    window.value("document.getElementById('alpha').focus()")
    start = shown(window)
    assert number(start["value"]) == pytest.approx(view["alpha"], rel=1e-3)
    window.press("ArrowRight", times=12)
    later = shown(window)
    assert number(later["value"]) == pytest.approx(view["alpha"] * 1.12, rel=1e-3)
    expected = np.interp(view["alpha"] * 1.12, view["alphas"], view["cost"]["p95"])
    assert number(later["now-other"]) == pytest.approx(expected, rel=0.01)
    p = [np.interp(view["alpha"] * 1.12, view["alphas"], token["p"]) for token in view["prompts"][0]["tokens"]]
    assert [number(bar) for bar in later["bars"]] == pytest.approx([100 * x for x in [*p, 1 - sum(p)]], abs=0.06)
    assert all(start[name] != later[name] for name in ("value", "now-share", "now-mean", "now-other", "bars"))
    window.press("Home")
    assert number(shown(window)["value"]) == 0
    assert number(shown(window)["now-mean"]) == pytest.approx(0, abs=1e-4)
    window.press("End")
    assert window.value("+document.getElementById('alpha').value") == last
    assert number(shown(window)["value"]) == pytest.approx(2.5 * view["alpha"], rel=1e-3)
    spoken = window.value("document.getElementById('alpha').getAttribute('aria-valuetext')")
    assert f"cost {shown(window)['now-mean']}" in spoken
    assert window.value("document.documentElement.scrollWidth") <= width
    background = window.value("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is not dark
    assert window.problems == []


STEP = """(async () => {
  const slider = document.getElementById("alpha"), frame = () => new Promise(done => requestAnimationFrame(done));
  const times = [];
  for (let k = 0; k < 60; k++) {
    await frame();
    const start = performance.now();
    slider.value = (k * 37) % slider.max;
    slider.dispatchEvent(new Event("input"));
    document.body.getBoundingClientRect();  // with the layout
    times.push(performance.now() - start);
  }
  return times.sort((a, b) => a - b)[54];
})()"""


def test_a_step_takes_less_than_50_ms(window, page):
    window.open(page)
    assert window.value(STEP) < 50


def test_blocks_and_prompts_are_chosen_by_keyboard(window, page, choices):
    window.open(page, width=390, height=800)
    views = views_of(page)
    window.value("document.getElementById('prompt').focus()")
    before = shown(window)
    window.press("ArrowDown", times=2)
    assert text(window, "context") == views[0]["prompts"][2]["text"]
    after = shown(window)
    assert after["bars"] != before["bars"]
    assert after["now-share"] == before["now-share"]
    assert views[0]["prompts"][2]["completions"][0] in text(window, "texts")
    window.value("document.getElementById('layer').focus()")
    window.press("ArrowDown")
    assert text(window, "verdict") == "no strength"
    assert choices[1][1].reason in text(window, "summary")
    assert text(window, "context") == views[1]["prompts"][2]["text"]
    assert window.value("document.documentElement.scrollWidth") <= 390
    assert window.problems == []


def test_everything_that_is_operated_has_a_name_and_shows_its_focus(window, page):
    window.open(page)
    tree = window.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"slider", "combobox", "button", "link", "img", "image"}
    named = [(node["role"]["value"], node["name"]["value"]) for node in tree if node.get("role", {}).get("value") in roles]
    assert all(name for _, name in named)
    assert {role for role, _ in named} >= {"slider", "combobox", "button", "link"}
    window.press("Tab", times=3)
    outline = [window.value(f"getComputedStyle(document.activeElement).outline{part}") for part in ("Style", "Width")]
    assert outline == ["solid", "3px"]


def test_buttons_go_to_where_they_say(window, page):
    window.open(page)
    view = views_of(page)[0]
    for k, alpha in enumerate((0, view["alpha"], 2 * view["alpha"])):
        window.value(f"document.querySelectorAll('#jumps button')[{k}].click()")
        assert number(text(window, "value")) == pytest.approx(alpha, rel=1e-3)
        near = window.value(
            "[...document.querySelectorAll('#texts article')].findIndex(card => card.classList.contains('near'))"
        )
        assert near == k


def test_text_of_a_model_is_text(window, choices, tmp_path, monkeypatch):
    lm, both = choices
    bad = "<img src=x onerror=alert(1)>"
    monkeypatch.setattr("sim.choosing.page.word_of", lambda lm, token: bad)
    monkeypatch.setattr("sim.choosing.curves._end_of", lambda lm, row: bad)
    window.open(write_page(lm, both[:1], PROMPTS, tmp_path))
    assert window.value("document.querySelectorAll('main img').length") == 0
    assert text(window, "context") == bad
    assert window.problems == []
