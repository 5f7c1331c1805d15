(() => {
  "use strict";
  // All of the page can be read without this. It makes tables sortable, gives commands a button that copies them, and
  // follows the pointer through charts.
  const UNITS = {
    "": ["", 1], "s": ["s", 1], "ms": ["s", 1e-3], "µs": ["s", 1e-6], "min": ["s", 60], "h": ["s", 3600], "d": ["s", 86400],
    "B": ["B", 1], "kB": ["B", 1e3], "MB": ["B", 1e6], "GB": ["B", 1e9], "TB": ["B", 1e12],
    "KiB": ["B", 2 ** 10], "MiB": ["B", 2 ** 20], "GiB": ["B", 2 ** 30], "TiB": ["B", 2 ** 40], "%": ["%", 1],
  };
  const NOTHING = /^(–|-|not enough data|too few to say|unknown|no change)?$/;
  const words = new Intl.Collator("en", { numeric: true });
  const said = document.getElementById("said");

  // "1.2 s (1.1 to 1.3) unsettled" gives [1.2, "s"]; null where a cell says that there is no value; else its text.
  function read(cell) {
    const text = cell.textContent.replace(/[(\[].*/s, "").replace(/ unsettled.*/s, "").replace(/\s+/g, " ").trim();
    if (NOTHING.test(text) || text.startsWith("not enough data")) return null;
    const found = /^(?:<|±)? ?([+−-]?)([\d,]*\.?\d+(?:e[+-]?\d+)?) ?([^\d\s]+)?$/i.exec(text);
    if (!found) return text;
    const size = Number(found[2].replaceAll(",", "")) * (found[1] === "−" || found[1] === "-" ? -1 : 1);
    const [kind, factor] = UNITS[found[3] ?? ""] ?? [found[3].replace(/s$/, ""), 1];
    return [size * factor, kind];
  }

  // What sorts a column: numbers of one kind, else words; null where its numbers can't be compared, or are all the same.
  function keysOf(rows, column) {
    const found = rows.map((row) => read(row.cells[column]));
    const known = found.filter((value) => value !== null);
    const kinds = new Set(known.filter((value) => Array.isArray(value) && (value[0] || value[1])).map(([, kind]) => kind));
    if (kinds.size > 1) return null;
    const numbers = known.every(Array.isArray);
    const keys = rows.map((row, i) => found[i] && (numbers ? found[i][0] : row.cells[column].textContent.trim()));
    return new Set(keys.filter((key) => key !== null)).size > 1 ? keys : null;
  }

  function compare(a, b) {
    return typeof a === "number" && typeof b === "number" ? a - b : words.compare(a, b);
  }

  // Rows without a value stand last in both directions.
  function order(rows, keys, turn) {
    const places = rows.map((_, i) => i);
    places.sort((a, b) => {
      if (keys[a] === null || keys[b] === null) return (keys[a] === null) - (keys[b] === null) || a - b;
      return turn * compare(keys[a], keys[b]) || a - b;
    });
    return places.map((i) => rows[i]);
  }

  function sort(table, head, rows, keys) {
    const before = head.getAttribute("aria-sort");
    const next = before === "ascending" ? "descending" : before === "descending" ? null : "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    if (next) head.setAttribute("aria-sort", next);
    table.tBodies[0].append(...(next ? order(rows, keys, next === "ascending" ? 1 : -1) : rows));
    const name = head.textContent.trim();
    said.textContent = next ? `Sorted by ${name}, ${next}.` : "In the first order again.";
  }

  // A column's keys are read when it is first sorted: tables may have a thousand rows.
  function enhance(table) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 3) return;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      if (head.tagName !== "TH" || !keysOf(rows, column)) return;
      let keys = null;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.title = "Sort";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, head, rows, (keys ??= keysOf(rows, column))));
      head.append(button);
    });
  }

  async function copy(block, button) {
    let done = true;
    try {
      await navigator.clipboard.writeText(block.textContent.trim());
    } catch {
      getSelection().selectAllChildren(block);
      done = document.execCommand("copy");
    }
    button.firstChild.data = done ? "Copied" : "Selected";
    said.textContent = done ? `${block.getAttribute("aria-label")} copied.` : "Selected: copy it with the keyboard.";
    setTimeout(() => (button.firstChild.data = "Copy"), 2000);
  }

  function offerCopy(block) {
    const box = document.createElement("div");
    const button = document.createElement("button");
    box.className = "copied";
    button.type = "button";
    button.className = "copy";
    const what = document.createElement("span");
    what.className = "hidden";
    what.textContent = ` ${block.getAttribute("aria-label")}`;
    button.append("Copy", what);
    block.replaceWith(box);
    box.append(button, block);
    button.addEventListener("click", () => copy(block, button));
  }

  // The values of the part of a chart at the pointer or finger, in a box beside it rather than inside the chart.
  const values = document.getElementById("values");
  let pointed = null;

  function line(part, place) {
    const cells = part.textContent.split(place ? "\u2002" : "\n").map((text) => {
      const cell = document.createElement("span");
      cell.textContent = text;
      return cell;
    });
    const colour = part.getAttribute("class");
    if (colour) cells[0].prepend(document.createElement("i"));
    if (colour) cells[0].firstChild.style.background = `var(--${colour})`;
    cells.at(-1).className = cells.length > 1 ? "value" : "whole";
    return cells;
  }

  function show(part) {
    if (part === pointed) return;
    pointed?.classList.remove("on");
    part?.classList.add("on");
    pointed = part;
    values.hidden = !part;
    values.replaceChildren(...[...(part?.querySelectorAll("tspan") ?? [])].flatMap(line));
  }

  function follow(event) {
    const { clientX: x, clientY: y } = event;
    show(document.elementFromPoint(x, y)?.closest(".tip") ?? null);
    if (!pointed) return;
    const { offsetWidth: wide, offsetHeight: tall } = values;
    const top = event.pointerType === "touch" ? y - tall - 30 : y + 16;
    values.style.left = `${Math.max(8, x + 16 + wide < innerWidth - 8 ? x + 16 : x - 16 - wide)}px`;
    values.style.top = `${Math.max(8, Math.min(top, innerHeight - tall - 8))}px`;
  }

  document.body.classList.add("pointed");
  for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, follow);
  document.documentElement.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && show(null));
  document.addEventListener("scroll", () => show(null), true);
  document.addEventListener("keydown", (event) => event.key === "Escape" && show(null));
  document.querySelectorAll("table").forEach(enhance);
  document.querySelectorAll("main pre").forEach(offerCopy);
})();
