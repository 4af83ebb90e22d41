// Sorting and filtering of the table of cases. Without it the table is a plain one.
(() => {
  "use strict";
  const table = document.getElementById("per-case");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];

  // A figure carries its full value in data-v; an undefined one has none and stays last either way.
  const value = (row, column, numeric) => {
    const cell = row.cells[column];
    if (!numeric) return cell.textContent.trim();
    return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
  };
  const compare = (a, b, numeric) =>
    numeric ? a - b : a.localeCompare(b, undefined, { numeric: true, sensitivity: "base" });

  const sort = (column) => {
    const header = headers[column];
    const numeric = header.classList.contains("num");
    const down = header.getAttribute("aria-sort") === "ascending";
    headers.forEach((h) => h.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = rows.map((row) => [value(row, column, numeric), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return (down ? -1 : 1) * compare(a, b, numeric);
    });
    body.append(...keyed.map(([, row]) => row));
  };

  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent.trim();
    button.addEventListener("click", () => sort(column));
    header.replaceChildren(button);
  });

  const tools = document.getElementById("tools");
  const box = document.getElementById("filter");
  const count = document.getElementById("count");
  const filter = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = `${shown} of ${rows.length} rows`;
  };
  box.addEventListener("input", filter);
  tools.hidden = false;
  filter();
  table.dataset.ready = "true";
})();
