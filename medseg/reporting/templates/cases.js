// The table of every case: sorting, filtering, and the way to a case's picture. Without it the table is a plain one.
// A long table comes as data, and only the rows in sight are in the page.
(() => {
  "use strict";
  const table = document.getElementById("per-case");
  if (!table) return;
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  const numeric = headers.map((h) => h.classList.contains("num"));
  const data = document.getElementById("per-case-rows");
  const place = document.getElementById("per-case-place");
  const box = document.getElementById("filter");
  const count = document.getElementById("count");

  // A row: its texts, and its figures in full where they are figures; an undefined one is null and stays last either way.
  const fromPage = (row) => ({
    texts: [...row.cells].map((c) => c.textContent.trim()),
    values: [...row.cells].map((c, i) => (numeric[i] && c.dataset.v !== undefined ? Number(c.dataset.v) : null)),
    anchors: [row.id, row.dataset.picture],
    element: row,
  });
  const fromData = ({ rows, anchors }) =>
    rows.map((row, i) => ({
      texts: row.map((c) => (Array.isArray(c) ? c[0] : c)),
      values: row.map((c) => (Array.isArray(c) ? c[1] : null)),
      anchors: anchors[i],
    }));
  const all = data ? fromData(JSON.parse(data.textContent)) : [...body.rows].map(fromPage);
  for (const row of all) row.key = row.texts.join(" ").toLowerCase();
  let shown = all;

  const link = (row) => {
    const cell = row.element.cells[0];
    if (cell.firstElementChild || !document.getElementById(row.anchors[1])) return;
    const a = document.createElement("a");
    a.href = `#${row.anchors[1]}`;
    a.title = "to the picture";
    a.textContent = row.texts[0];
    cell.replaceChildren(a);
  };
  const build = (row) => {
    const tr = document.createElement("tr");
    row.texts.forEach((text, i) => {
      const cell = document.createElement(i ? "td" : "th");
      if (!i) cell.scope = "row";
      if (numeric[i]) cell.className = "num";
      cell.textContent = text;
      tr.append(cell);
    });
    row.element = tr;
    if (row.anchors) {
      tr.id = row.anchors[0];
      link(row);
    }
    return tr;
  };

  const spacer = () => {
    const tr = document.createElement("tr");
    tr.className = "spacer";
    tr.setAttribute("aria-hidden", "true");
    tr.append(document.createElement("td"));
    tr.firstChild.colSpan = headers.length;
    return tr;
  };
  const [above, below] = [spacer(), spacer()];
  let height = 0;
  // Holds the columns' widths while rows come and go.
  const widest = () => {
    const longest = headers.map((_, i) => all.reduce((a, r) => (r.texts[i].length > a.length ? r.texts[i] : a), ""));
    const tr = build({ texts: longest });
    tr.className = "widest";
    tr.setAttribute("aria-hidden", "true");
    return tr;
  };
  let sizing = null;
  // Readers of the screen are told where a row stands among those that match; the header is the first.
  const place_of = (row, i) => {
    const tr = row.element || build(row);
    tr.setAttribute("aria-rowindex", i + 2);
    return tr;
  };
  const draw = () => {
    table.setAttribute("aria-rowcount", shown.length + 1);
    if (!data) {
      body.replaceChildren(...shown.map(place_of));
      return;
    }
    sizing ??= widest();
    if (!height && shown.length) {
      body.replaceChildren(...shown.slice(0, 20).map(build));
      height = body.getBoundingClientRect().height / body.rows.length;
    }
    const first = Math.max(0, Math.floor(place.scrollTop / (height || 1)) - 20);
    const last = Math.min(shown.length, first + 40 + Math.ceil(place.clientHeight / (height || 1)));
    above.firstChild.style.height = `${first * height}px`;
    below.firstChild.style.height = `${(shown.length - last) * height}px`;
    body.replaceChildren(sizing, above, ...shown.slice(first, last).map((r, i) => place_of(r, first + i)), below);
  };

  const compare = (a, b, column) =>
    numeric[column] ? a.values[column] - b.values[column] : a.texts[column].localeCompare(b.texts[column], undefined, { numeric: true, sensitivity: "base" });
  let order = all;
  let sorted = "";
  const sort = (column) => {
    const header = headers[column];
    const down = header.getAttribute("aria-sort") === "ascending";
    headers.forEach((h) => h.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    sorted = `, by ${header.textContent.trim()} ${numeric[column] ? (down ? "from high to low" : "from low to high") : down ? "from Z to A" : "from A to Z"}`;
    order = [...all].sort((a, b) => {
      const [x, y] = [numeric[column] && a.values[column] === null, numeric[column] && b.values[column] === null];
      return x || y ? x - y : (down ? -1 : 1) * compare(a, b, column);
    });
    filter();
  };
  const filter = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = words.length ? order.filter((row) => words.every((word) => row.key.includes(word))) : order;
    count.textContent = `${shown.length} of ${all.length} rows${sorted}`;
    place.scrollTop = 0;
    draw();
  };

  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent.trim();
    button.addEventListener("click", () => sort(column));
    header.replaceChildren(button);
  });
  if (!data) all.forEach(link);
  else place.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
  box.addEventListener("input", filter);
  // A link to a row that is filtered away or out of sight brings it back first.
  const seek = () => {
    const id = decodeURIComponent(location.hash.slice(1));
    const row = id.startsWith("row.") && all.find((r) => r.anchors[0] === id);
    if (!row) return;
    if (!shown.includes(row)) {
      box.value = "";
      filter();
    }
    if (data) {
      place.scrollTop = shown.indexOf(row) * height;
      draw();
    }
    all.forEach((r) => r.element?.classList.toggle("found", r === row));
    row.element.scrollIntoView({ block: "center" });
  };
  window.addEventListener("hashchange", seek);
  document.getElementById("tools").hidden = false;
  document.getElementById("first-rows")?.remove();
  filter();
  seek();
  table.dataset.ready = "true";
})();
