// The pairs (t, k), k ≤ t, as a table of buttons: one is chosen by mouse, finger, or the arrow keys. Each cell has two lines and
// a bar. For short sequences; its cells are the page's only tab stop in it.
import { inkOn } from "./decades.js";
import { el } from "./dom.js";

// read(state) → {T, t, k}; choose(t, k); cell(t, k, state, results) → {strong, text, share: 0..1 of the bar, label: for a screen
// reader, colour: of the cell, or nothing, among: whether it is marked}. point(t, k) is called with the cell under a mouse, or with null.
export function triangleTable(page, { label, read, choose, cell, point = () => {} }) {
  const table = el("table", { class: "triangle", role: "grid", "aria-label": label, onkeydown: move });
  let cells = [];
  let size = 0;

  function build(T) {
    cells = Array.from({ length: T }, (_, t) => Array.from({ length: t + 1 }, (_, k) => makeCell(t + 1, k + 1)));
    const steps = cells.map((_, k) => el("th", { scope: "col" }, `k = ${k + 1}`));
    const rows = cells.map((row, t) =>
      el(
        "tr",
        {},
        el("th", { scope: "row" }, `t = ${t + 1}`),
        row.map(({ node }) => node),
      ),
    );
    table.replaceChildren(el("thead", {}, el("tr", {}, el("td"), steps)), el("tbody", {}, rows));
    size = T;
  }

  function makeCell(t, k) {
    const [strong, text, bar] = [el("b"), el("span"), el("i", { "aria-hidden": "true" })];
    const choice = el(
      "button",
      { type: "button", onclick: () => choose(t, k), onpointerenter: () => point(t, k), onpointerleave: () => point(null) },
      strong,
      text,
      bar,
    );
    return { node: el("td", { role: "gridcell" }, choice), choice, strong, text, bar };
  }

  function move(event) {
    const { T, t, k } = read(page.get());
    const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key] ?? [
      0, 0,
    ];
    if (down === 0 && right === 0) return;
    event.preventDefault();
    const [to, from] = [t + down, k + right];
    if (to > T || from < 1 || from > to) return;
    choose(to, from);
    cells[to - 1][from - 1].choice.focus();
  }

  page.follow((state, results) => {
    const { T, t, k } = read(state);
    if (T !== size) build(T);
    cells.forEach((row, i) =>
      row.forEach((each, j) => {
        const chosen = i + 1 === t && j + 1 === k;
        const { strong, text = "", share = 0, label: said, colour = "", among = false } = cell(i + 1, j + 1, state, results);
        each.choice.setAttribute("aria-pressed", String(chosen));
        each.choice.setAttribute("aria-label", said);
        each.choice.tabIndex = chosen ? 0 : -1;
        each.strong.textContent = strong;
        each.text.textContent = text;
        each.choice.style.background = colour;
        each.choice.style.color = colour && inkOn(colour);
        each.choice.classList.toggle("among", among);
        each.bar.style.width = `${Math.round(100 * share)}%`;
      }),
    );
  });
  return table;
}
