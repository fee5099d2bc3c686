// Curves over steps or lags, as SVG. A log axis takes log10 of the values: −∞ (a zero) leaves a gap. What is NaN or
// infinite is marked at the top edge, ∞ by a triangle, NaN by a cross.
import { el, followWide, svg } from "./dom.js";
import { decade, plain, show } from "./numbers.js";
import { ticks } from "./ticks.js";
/** @import { LineChart, Page, State } from "../types.d.ts" */

const [LEFT, TOP, RIGHT, BOTTOM, HEIGHT] = [64, 14, 14, 44, 220];
const DOT = "m-2 0 a2 2 0 1 0 4 0 a2 2 0 1 0 -4 0"; // a value without neighbours
const DEEPEST = 12; // decades below the highest value that are shown, where nothing else is asked for

/**
 * A chart of the curves, with a key where there are several; hidden where describe gives null.
 * @type {(page: Page, describe: (state: State) => LineChart | null) => HTMLElement}
 */
export function lineChart(page, describe) {
  const drawing = el("div", { class: "chart-drawing" });
  const key = el("div", { class: "legend" });
  const host = el("div", { class: "chart" }, drawing, key);
  followWide(page, host, (width, state) => {
    const wanted = describe(state);
    host.hidden = wanted === null;
    if (wanted === null || width === 0) return;
    drawing.replaceChildren(draw(wanted, width));
    key.hidden = wanted.lines.length < 2;
    const named = wanted.lines.filter(({ name }) => name !== null);
    key.replaceChildren(...named.map((line) => el("span", { class: "note" }, sample(line.class), line.name)));
  });
  return host;
}

/** @type {(kind: string) => SVGElement} */
const sample = (kind) =>
  svg("svg", { width: 30, height: 10, "aria-hidden": "true" }, svg("path", { class: `curve ${kind}`, d: "M1 5 H29" }));

/**
 * @type {(wanted: LineChart, width: number) => SVGElement}
 * @typedef {(value: number) => number} Scale from a value to its place in pixels
 */
function draw(wanted, width) {
  const { lines, x, first, last, log } = wanted;
  const values = lines.flatMap((line) => line.values.filter(Number.isFinite));
  const [low, high] = log ? logRange(values, wanted.deepest ?? DEEPEST) : linearRange(values);
  /** @type {Scale} */
  const across = (place) => LEFT + ((place - first) / (last - first || 1)) * (width - LEFT - RIGHT);
  /** @type {Scale} */
  const down = (value) => TOP + ((high - value) / (high - low || 1)) * (HEIGHT - TOP - BOTTOM);
  const parts = [
    ...vertical(low, high, log, down, width),
    ...horizontal(wanted, across, width),
    ...lines.map((line) => curve(x, line, across, down, low)),
    ...lines.slice(0, 1).flatMap((line) => unusual(x, line, across)),
    ...(wanted.marks ?? []).map(({ at, text }) => mark(across(at), text, width)),
  ];
  if (wanted.cursor !== null && wanted.cursor !== undefined) {
    parts.push(svg("path", { class: "cursor", d: `M${across(wanted.cursor)} ${TOP} V${HEIGHT - BOTTOM}` }));
  }
  return svg("svg", { role: "img", "aria-label": wanted.label, width, height: HEIGHT }, parts);
}

/** @type {(values: number[], deepest: number) => [number, number]} */
function logRange(values, deepest) {
  const top = values.length ? Math.ceil(Math.max(...values)) : 0;
  const low = values.length ? Math.max(Math.floor(Math.min(...values)), top - deepest) : -1;
  return [Math.min(low, top - 1), top];
}

/** @type {(values: number[]) => [number, number]} */
function linearRange(values) {
  const [least, most] = [Math.min(0, ...values), Math.max(0, ...values)];
  return [least, most > least ? most : least + 1];
}

/** @type {(low: number, high: number, log: boolean, down: Scale, width: number) => SVGElement[]} */
function vertical(low, high, log, down, width) {
  return ticks(low, high, 5).flatMap((value) => [
    svg("path", { class: "grid", d: `M${LEFT} ${down(value)} H${width - RIGHT}` }),
    svg(
      "text",
      { x: LEFT - 8, y: down(value) + 4, class: "end" },
      log ? decade(value) : Math.abs(value) < 1e5 ? plain(value) : show(value),
    ),
  ]);
}

/** @type {(wanted: LineChart, across: Scale, width: number) => SVGElement[]} */
function horizontal({ first, last, axis }, across, width) {
  const marks = ticks(first, last, width < 420 ? 4 : 8);
  return [
    svg("path", { class: "frame", d: `M${LEFT} ${HEIGHT - BOTTOM} H${width - RIGHT}` }),
    ...marks.map((at) => svg("text", { x: across(at), y: HEIGHT - BOTTOM + 18 }, at)),
    svg("text", { class: "axis", x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 6 }, axis),
  ];
}

/**
 * One curve. What is below the lowest value shown ends at the floor.
 * @type {(x: number[], line: LineChart["lines"][number], across: Scale, down: Scale, low: number) => SVGElement}
 */
function curve(x, { values, class: kind }, across, down, low) {
  /** @type {(i: number) => boolean} */
  const drawn = (i) => Number.isFinite(values[i]) && (values[i] >= low || values[i - 1] >= low);
  let path = "";
  values.forEach((value, i) => {
    if (!drawn(i)) return;
    const alone = !drawn(i - 1) && !drawn(i + 1);
    const goesOn = drawn(i - 1) && values[i - 1] >= low;
    path += `${goesOn ? "L" : "M"}${across(x[i]).toFixed(1)} ${down(Math.max(value, low)).toFixed(1)}${alone ? DOT : ""}`;
  });
  return svg("path", { class: `curve ${kind}`, d: path });
}

/** @type {(x: number[], line: LineChart["lines"][number], across: Scale) => SVGElement[]} */
function unusual(x, { values }, across) {
  return values.flatMap((value, i) => {
    if (!Number.isNaN(value) && value !== Infinity) return [];
    const at = across(x[i]);
    const d = value === Infinity ? `M${at - 4} ${TOP + 4} l4 -8 l4 8 z` : `M${at - 3.5} ${TOP - 4} l7 7 m0 -7 l-7 7`;
    return [svg("path", { class: "unusual", d })];
  });
}

/** @type {(x: number, text: string, width: number) => SVGElement} */
function mark(x, text, width) {
  const right = x > width * 0.6;
  return svg(
    "g",
    {},
    svg("path", { class: "mark", d: `M${x} ${TOP} V${HEIGHT - BOTTOM}` }),
    svg("text", { class: right ? "end" : "start", x: x + (right ? -6 : 6), y: TOP + 12 }, text),
  );
}
