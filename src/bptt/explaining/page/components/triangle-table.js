// The pairs (t, k), k ≤ t, as a table of buttons: one is chosen by mouse, finger, or the arrow keys. Each cell has two
// lines and a bar. For short sequences; its cells are the page's only tab stop in it.
import { inkOn } from "./decades.js";
import { ARROWS, el } from "./dom.js";
/** @import { Attributes, Page, Pair, State, TriangleCell } from "../types.d.ts" */

/**
 * A table that follows the state. read(state): T and the chosen pair; choose(t, k) is called with another pair,
 * point([t, k]) with the pair under a mouse, and point(null) when it leaves.
 * @type {(page: Page, options: TriangleOptions) => HTMLElement}
 * @typedef {object} TriangleOptions
 * @property {string} label
 * @property {(state: State) => { T: number, t: number, k: number }} read
 * @property {(t: number, k: number) => void} choose
 * @property {(t: number, k: number, state: State) => TriangleCell} cell
 * @property {(pair: Pair | null) => void} [point]
 */
export function triangleTable(page, { label, read, choose, cell, point = () => {} }) {
  const table = el("table", { class: "triangle", role: "grid", "aria-label": label, onkeydown: move });
  /** @type {ReturnType<typeof cellNode>[][]} */
  let cells = [];

  /** @type {(t: number, k: number) => Attributes} */
  const listeners = (t, k) => ({
    onclick: () => choose(t, k),
    onpointerenter: () => point([t, k]),
    onpointerleave: () => point(null),
  });

  /** @type {(event: KeyboardEvent) => void} */
  function move(event) {
    const { T, t, k } = read(page.get());
    const [down, right] = ARROWS[event.key] ?? [0, 0];
    if (down === 0 && right === 0) return;
    event.preventDefault();
    const [to, from] = [t + down, k + right];
    if (to > T || from < 1 || from > to) return;
    choose(to, from);
    cells[to - 1][from - 1].choice.focus();
  }

  page.follow((state) => {
    const { T, t, k } = read(state);
    if (T !== cells.length) {
      cells = steps(T).map((row) => steps(row).map((column) => cellNode(listeners(row, column))));
      table.replaceChildren(...headAndBody(cells));
    }
    cells.forEach((row, i) =>
      row.forEach((each, j) => each.update(cell(i + 1, j + 1, state), i + 1 === t && j + 1 === k)),
    );
  });
  return table;
}

/**
 * The steps 1, …, n.
 * @type {(n: number) => number[]}
 */
const steps = (n) => Array.from({ length: n }, (_, i) => i + 1);

/** @type {(cells: { node: HTMLElement }[][]) => HTMLElement[]} */
function headAndBody(cells) {
  const columns = cells.map((_, k) => el("th", { scope: "col" }, `k = ${k + 1}`));
  const rows = cells.map((row, t) => {
    const nodes = row.map(({ node }) => node);
    return el("tr", {}, el("th", { scope: "row" }, `t = ${t + 1}`), nodes);
  });
  return [el("thead", {}, el("tr", {}, el("td"), columns)), el("tbody", {}, rows)];
}

/**
 * An empty cell with a function that fills it.
 * @type {(listeners: Attributes) =>
 *   { node: HTMLElement, choice: HTMLElement, update: (shown: TriangleCell, chosen: boolean) => void }}
 */
function cellNode(listeners) {
  const [strong, text, bar] = [el("b"), el("span"), el("i", { "aria-hidden": "true" })];
  const choice = el("button", { type: "button", ...listeners }, strong, text, bar);
  return {
    node: el("td", { role: "gridcell" }, choice),
    choice,
    update(shown, chosen) {
      const { colour = "", among = false, share = 0 } = shown;
      choice.setAttribute("aria-pressed", String(chosen));
      choice.setAttribute("aria-label", shown.label);
      choice.tabIndex = chosen ? 0 : -1;
      strong.textContent = shown.strong;
      text.textContent = shown.text ?? "";
      choice.style.background = colour;
      choice.style.color = colour && inkOn(colour);
      choice.classList.toggle("among", among);
      bar.style.width = `${Math.round(100 * share)}%`;
    },
  };
}
