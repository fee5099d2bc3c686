// A unit circle and what a 2 × 2 matrix U diag(10^s) Vᵀ makes of it.
import { el, followWide, svg } from "./dom.js";
import { lagAxis } from "./logchart.js";
import { decade } from "./numbers.js";
/** @import { Decomposition, Matrix, Page, State, Vector } from "../types.d.ts" */

const SIZE = 250;
const ROOM = 104; // pixels from the centre

/**
 * A drawing of the circle and the ellipse; s holds log₁₀ of the half axes.
 * @type {(page: Page, describe: (state: State) => Decomposition & { label: string }) => HTMLElement}
 */
export function circleAndEllipse(page, describe) {
  const host = el("div", { class: "ellipse" });
  page.follow((state) => host.replaceChildren(picture(describe(state))));
  return host;
}

/** @type {(described: Decomposition & { label: string }) => SVGElement} */
function picture({ U, V, s, label }) {
  const larger = enlargedBy(s[0]);
  const sizes = s.map((value) => 10 ** (value + larger));
  const unit = ROOM / Math.max(1, sizes[0] < Infinity ? sizes[0] : 1);
  // Upwards is positive.
  /** @type {(column: Vector, size: number) => Vector} */
  const to = (column, size) => column.map((value, i) => (i === 0 ? 1 : -1) * value * size * unit);
  const [first, second, before] = [to(column(U, 0), sizes[0]), to(column(U, 1), sizes[1]), to(column(V, 0), 1)];
  const halfAxes = sizes.map((size) => size * unit);
  const note = `ellipse enlarged ${larger < 4 ? 10 ** larger : decade(larger)} times`;
  return svg(
    "svg",
    {
      role: "img",
      "aria-label": label,
      width: SIZE,
      height: SIZE,
      viewBox: `${-SIZE / 2} ${-SIZE / 2} ${SIZE} ${SIZE}`,
    },
    svg("path", { class: "cross", d: `M${-ROOM - 12} 0 H${ROOM + 12} M0 ${-ROOM - 12} V${ROOM + 12}` }),
    svg("circle", { class: "circle", r: Math.max(2, unit) }),
    shape(U, halfAxes),
    svg("path", { class: "axis", d: `M${first.map((v) => -v)} L${first}` }),
    svg("path", { class: "axis thin", d: `M${second.map((v) => -v)} L${second}` }),
    svg("circle", { class: "mark hollow", cx: before[0], cy: before[1], r: 5 }),
    svg("circle", { class: "mark", cx: first[0], cy: first[1], r: 5 }),
    larger > 0 ? svg("text", { x: 0, y: SIZE / 2 - 4 }, note) : null,
  );
}

/**
 * The powers of ten that an ellipse is enlarged by to be seen, given log₁₀ of its longer half axis.
 * @type {(log: number) => number}
 */
function enlargedBy(log) {
  return Number.isFinite(log) && log < -0.7 ? Math.ceil(-log - 0.3) : 0;
}

/**
 * A row of ellipses below a chart, each at its lag and enlarged to the same length. pick(lag) is called at a click.
 * @type {(page: Page, describe: (state: State) => Strip, pick: (lag: number) => void) => HTMLElement}
 * @typedef {{ lags: Decomposition[], last: number, lag: number }} Strip lag: the one that is marked
 */
export function ellipseStrip(page, describe, pick) {
  const host = el("div", { class: "ellipse strip" });
  const width = followWide(page, host, (now, state) => {
    if (now > 0) host.replaceChildren(strip(describe(state), now));
  });
  host.addEventListener("click", (event) =>
    pick(lagAxis(width(), describe(page.get()).last).lag(event.clientX - host.getBoundingClientRect().left)),
  );
  return host;
}

/** @type {(described: Strip, width: number) => SVGElement} */
function strip({ lags, last, lag }, width) {
  const axis = lagAxis(width, last);
  const every = Math.max(1, Math.ceil((34 * last) / width));
  const root = svg("svg", { width, height: 44, viewBox: `0 0 ${width} 44`, "aria-hidden": "true" });
  for (let at = 0; at <= last; at += every) {
    const { U, s } = lags[at];
    const narrow = Math.max(0.06, 10 ** Math.min(0, s[1] - s[0]) || 0);
    const place = svg("g", { transform: `translate(${axis.x(at)} 22)` }, shape(U, [13, 13 * narrow]));
    if (Math.abs(at - lag) * 2 < every || (at === 0 && lag === 0))
      place.append(svg("path", { class: "chosen", d: "M-13 19 H13" }));
    root.append(place);
  }
  return root;
}

/** @type {(A: Matrix, j: number) => Vector} */
const column = (A, j) => A.map((row) => row[j]);

/**
 * An ellipse with its longer half axis along the first column of U.
 * @type {(U: Matrix, halfAxes: Vector) => SVGElement}
 */
function shape(U, [long, short]) {
  const turn = (-Math.atan2(U[1][0], U[0][0]) * 180) / Math.PI;
  /** @type {(value: number) => number} */
  const size = (value) => Math.max(0.7, Number.isFinite(value) ? value : 0);
  return svg("ellipse", { rx: size(long), ry: size(short), transform: `rotate(${Number.isFinite(turn) ? turn : 0})` });
}
