// The rows of a matrix [n, 2] as arrows from one point, before and after something was done to them.
import { el, svg } from "./dom.js";
/** @import { Matrix, Page, State, Vector } from "../types.d.ts" */

const SIZE = 240;
const ROOM = 100; // pixels of the longest arrow
const SHORTEST = 3; // of those with a head and a name

/**
 * A drawing of sets of arrows, all to the scale of the longest; `kind` is a class, and the first set bears the names
 * of the rows.
 * @type {(page: Page, describe: (state: State) => ArrowSets) => HTMLElement}
 * @typedef {{ sets: { rows: Matrix, kind: string }[], names: string[], label: string }} ArrowSets
 */
export function arrows(page, describe) {
  const host = el("div", { class: "arrows" });
  page.follow((state) => {
    const { sets, names, label } = describe(state);
    const lengths = sets.flatMap(({ rows }) => rows.map((row) => Math.hypot(...row))).filter(Number.isFinite);
    const unit = ROOM / Math.max(...lengths, Number.MIN_VALUE);
    const root = svg("svg", {
      role: "img",
      "aria-label": label,
      width: SIZE,
      height: SIZE,
      viewBox: `${-SIZE / 2} ${-SIZE / 2} ${SIZE} ${SIZE}`,
    });
    root.append(svg("path", { class: "cross", d: `M${-ROOM - 15} 0 H${ROOM + 15} M0 ${-ROOM - 15} V${ROOM + 15}` }));
    for (const { rows, kind } of sets) root.append(...rows.map((row) => arrow(row, kind, unit)));
    root.append(...sets[0].rows.flatMap((row, i) => name(row, names[i], unit)));
    host.replaceChildren(root);
  });
  return host;
}

/**
 * Where an arrow ends, in pixels from the centre; upwards is positive. The centre if that is not finite.
 * @type {(row: Vector, unit: number) => Vector}
 */
const place = ([x, y], unit) =>
  Number.isFinite(x * unit) && Number.isFinite(y * unit) ? [x * unit, -y * unit] : [0, 0];

/** @type {(row: Vector, kind: string, unit: number) => SVGElement} */
function arrow(row, kind, unit) {
  const [x, y] = place(row, unit);
  const angle = (Math.atan2(y, x) * 180) / Math.PI;
  const head =
    Math.hypot(x, y) < SHORTEST
      ? null
      : svg("path", { class: "head", d: "M-10 -5 L0 0 L-10 5 z", transform: `translate(${x} ${y}) rotate(${angle})` });
  return svg("g", { class: `arrow ${kind}` }, svg("path", { class: "line", d: `M0 0 L${x} ${y}` }), head);
}

/** @type {(row: Vector, text: string, unit: number) => SVGElement[]} */
function name(row, text, unit) {
  const [x, y] = place(row, unit);
  const size = Math.hypot(x, y);
  if (size < SHORTEST) return [];
  return [svg("text", { x: x + (14 * x) / size, y: y + (14 * y) / size + 5 }, text)];
}
