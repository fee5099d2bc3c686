// Lines over the lag, on a log scale.
import { el, followWide, svg, uniqueName } from "./dom.js";
import { decade } from "./numbers.js";
import { ticks } from "./ticks.js";
/** @import { LogChart, Page, State } from "../types.d.ts" */

const [LEFT, RIGHT, TOP, BOTTOM] = [52, 16, 12, 46];

/**
 * A chart that follows the state. pick(lag) is called when it is clicked or dragged on.
 * @type {(page: Page, describe: (state: State) => LogChart, options?: { pick?: (lag: number) => void,
 *   height?: number }) => HTMLElement}
 */
export function logChart(page, describe, { pick, height = 270 } = {}) {
  const legend = el("div", { class: "key" });
  const host = el("div");
  let named = "";
  const width = followWide(page, host, (now, state) => {
    if (now === 0) return;
    const wanted = describe(state);
    const names = wanted.lines.map(({ name, kind }) => `${name} ${kind}`).join();
    if (names !== named) legend.replaceChildren(...wanted.lines.map(entry));
    named = names;
    host.replaceChildren(chart(wanted, now, height));
  });
  if (pick) dragged(host, (x) => pick(lagAxis(width(), describe(page.get()).last).lag(x)));
  return el("div", { class: `logchart ${pick ? "picked" : ""}` }, legend, host);
}

/**
 * Where a lag stands in a drawing of this width, and which lag stands at x.
 * @type {(width: number, last: number) => { x: (lag: number) => number, lag: (x: number) => number }}
 */
export function lagAxis(width, last) {
  const gap = (width - LEFT - RIGHT) / Math.max(1, last);
  return { x: (lag) => LEFT + lag * gap, lag: (x) => Math.min(last, Math.max(0, Math.round((x - LEFT) / gap))) };
}

/** @type {(host: HTMLElement, at: (x: number) => void) => void} */
function dragged(host, at) {
  /** @type {(event: PointerEvent) => void} */
  const move = (event) => at(event.clientX - host.getBoundingClientRect().left);
  host.addEventListener("pointerdown", move);
  host.addEventListener("pointermove", (event) => event.buttons === 1 && move(event));
}

/** @type {(line: LogChart["lines"][number]) => HTMLElement} */
function entry({ name, kind }) {
  const mark =
    kind === "dots"
      ? svg("circle", { class: kind, cx: 13, cy: 6, r: 2.6 })
      : svg("path", { class: kind, d: "M0 6 H26" });
  return el("span", {}, svg("svg", { width: 26, height: 12, "aria-hidden": "true" }, mark), name);
}

/** @type {(wanted: LogChart, width: number, height: number) => SVGElement} */
function chart({ last, lines, label, level, at }, width, height) {
  const { x } = lagAxis(width, last);
  const [low, high] = range(lines);
  const [right, base] = [width - RIGHT, height - BOTTOM];
  /** @type {(value: number) => number} */
  const y = (value) => TOP + ((high - value) / (high - low)) * (base - TOP);
  const name = uniqueName("plot");
  const frame = svg("rect", { x: LEFT - 3, y: TOP - 3, width: right - LEFT + 6, height: base - TOP + 6 });
  const inside = svg("g", { "clip-path": `url(#${name})` });
  if (level && level.at > low && level.at < high) inside.append(...levelLine(level, y, right));
  if (at !== undefined) inside.append(svg("path", { class: "at", d: `M${x(at)} ${TOP} V${base}` }));
  for (const { kind, values } of lines)
    inside.append(...(kind === "dots" ? dots(values, x, y) : [line(kind, values, x, y)]));
  return svg(
    "svg",
    { role: "img", "aria-label": label, width, height, viewBox: `0 0 ${width} ${height}` },
    svg("clipPath", { id: name }, frame),
    ticks(Math.ceil(low), Math.floor(high), 5).flatMap((value) => decadeLine(value, y, right)),
    ticks(0, last, Math.min(10, width / 60)).map((lag) => svg("text", { class: "tick", x: x(lag), y: base + 18 }, lag)),
    svg("text", { class: "tick", x: (LEFT + right) / 2, y: height - 6 }, "lag t − k"),
    inside,
  );
}

/** @type {(value: number, y: (value: number) => number, right: number) => SVGElement[]} */
const decadeLine = (value, y, right) => [
  svg("path", { class: value === 0 ? "one" : "grid", d: `M${LEFT} ${y(value)} H${right}` }),
  svg("text", { class: "tick left", x: LEFT - 8, y: y(value) + 4 }, decade(value)),
];

/** @type {(level: { at: number, text: string }, y: (value: number) => number, right: number) => SVGElement[]} */
const levelLine = ({ at, text }, y, right) => [
  svg("path", { class: "level", d: `M${LEFT} ${y(at)} H${right}` }),
  svg("text", { class: "tick right", x: right - 4, y: y(at) - 6 }, text),
];

/**
 * The ends of the scale, from the lines that count; a second singular value that is very much smaller may leave the
 * picture.
 * @type {(lines: LogChart["lines"]) => [number, number]}
 */
function range(lines) {
  /** @type {(kinds: string[]) => number[]} */
  const finite = (kinds) =>
    lines
      .filter(({ kind }) => kinds.includes(kind))
      .flatMap(({ values }) => values)
      .filter(Number.isFinite);
  const first = finite(["first", "other"]);
  const least = Math.min(0, ...first);
  const highest = Math.max(0, ...first);
  const limit = least - Math.max(4, highest - least);
  const low = Math.min(least, Math.max(limit, ...[Math.min(0, ...finite(["second"]))]), 0);
  const pad = Math.max(0.4, (highest - low) * 0.06);
  return [low - pad, highest + pad];
}

/**
 * One curve, broken where a value is not finite.
 * @type {(kind: string, values: number[], x: (lag: number) => number, y: (value: number) => number) => SVGElement}
 */
function line(kind, values, x, y) {
  /** @type {(value: number) => number} */
  const clear = (value) => Math.max(-1e4, Math.min(1e4, y(value)));
  const d = values.map((value, lag) =>
    Number.isFinite(value) ? `${lag > 0 && Number.isFinite(values[lag - 1]) ? "L" : "M"}${x(lag)} ${clear(value)}` : "",
  );
  return svg("path", { class: kind, d: d.join("") });
}

/** @type {(values: number[], x: (lag: number) => number, y: (value: number) => number) => SVGElement[]} */
function dots(values, x, y) {
  return values.flatMap((value, lag) =>
    Number.isFinite(value) ? [svg("circle", { class: "dots", cx: x(lag), cy: y(value), r: 2.6 })] : [],
  );
}
