// Tables that sort and filter: those of class "sortable". A click on a heading, or Enter on it, sorts by its column; a second
// one turns the order around. The field above a long one shows the rows that hold its words. Without the script the tables stand
// as they are.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], rows = [...body.rows];
  const number = (cell) => {
    const found = cell.textContent.replace("\u2212", "-").match(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
    return found ? Number(found[0]) : null;
  };
  const compare = (column) => (a, b) => {
    const [x, y] = [a, b].map((row) => row.cells[column]);
    const [p, q] = [x, y].map(number);
    const words = (cell) => cell.textContent.replace(/\s+/g, " ").trim();
    const bare = (cell, value) => value !== null && /^[-+\d]/.test(words(cell));
    return bare(x, p) && bare(y, q) ? p - q : words(x).localeCompare(words(y), "en", { numeric: true });
  };
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    if (!heading.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sorted = rows.slice().sort(compare(column));
      body.append(...(down ? sorted.reverse() : sorted));
    });
  });
  if (rows.length < 8) continue;
  const label = document.createElement("label"), field = document.createElement("input"), count = document.createElement("span");
  field.type = "search";
  label.className = "filter";
  label.append("Show rows with ", field, count);
  table.parentElement.before(label);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = words.length ? ` ${shown} of ${rows.length}` : "";
  });
}
