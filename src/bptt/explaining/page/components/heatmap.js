// A large map (t, k) on a canvas, its colours by the decade; row t downwards, column k to the right. One cell is
// chosen, by pointer or arrow keys. The axes and the frame of the chosen cell are SVG above the canvas.
import { ARROWS, el, followWide, svg, uniqueName } from "./dom.js";
import { colourOf } from "./decades.js";
import { ticks } from "./ticks.js";
/** @import { Attributes, MapView, Page, Pair, State } from "../types.d.ts" */

const [LEFT, TOP, RIGHT, BOTTOM] = [62, 8, 12, 46];
const WIDEST = 560;

/**
 * A map on a canvas, hidden where describe gives null. pick(cell) is called when another cell is chosen, point(cell)
 * with the cell under a mouse, and point(null) when it leaves.
 * @type {(page: Page, describe: (state: State) => MapView | null, pick: (cell: Pair) => void,
 *   point: (cell: Pair | null) => void) => HTMLElement}
 */
export function heatmap(page, describe, pick, point) {
  const canvas = el("canvas");
  const over = svg("svg", { "aria-hidden": "true" });
  const help = uniqueName("keys");
  const listeners = listening(canvas, () => describe(page.get()), pick, point);
  const attributes = { class: "heatmap", role: "img", tabindex: "0", "aria-describedby": help, ...listeners };
  const stage = el("div", attributes, canvas, over);
  const hint = el("small", { id: help }, "Point at a cell, or use the arrow keys.");
  const host = el("div", { class: "heatmap-host" }, stage, hint);
  let painted = "";

  followWide(page, host, (width, state) => {
    const map = describe(state);
    host.hidden = map === null;
    if (map === null || width === 0) return;
    const side = Math.min(width, WIDEST) - LEFT - RIGHT;
    const id = `${map.id} ${side}`;
    if (painted !== id) paint(canvas, map, side);
    painted = id;
    stage.setAttribute("aria-label", map.label);
    over.setAttribute("width", String(side + LEFT + RIGHT));
    over.setAttribute("height", String(side + TOP + BOTTOM));
    over.replaceChildren(...axes(map, side), chosen(map, side));
  });
  globalThis.matchMedia?.("(prefers-color-scheme: dark)").addEventListener("change", () => {
    painted = "";
    page.refresh();
  });
  return host;
}

/**
 * Listeners of keys and pointers. Keys may come faster than repaints, so they ask for the map as it is.
 * @type {(canvas: HTMLCanvasElement, now: () => MapView | null, pick: (cell: Pair) => void,
 *   point: (cell: Pair | null) => void) => Attributes}
 */
function listening(canvas, now, pick, point) {
  /** @type {(event: PointerEvent, call: (cell: Pair) => void) => void} */
  function callAt(event, call) {
    const map = now();
    if (map === null) return;
    const box = canvas.getBoundingClientRect();
    /** @type {(offset: number) => number} */
    const index = (offset) => Math.floor((offset / box.width) * map.blocks);
    callWithin(map, [index(event.clientY - box.top), index(event.clientX - box.left)], call);
  }

  /** @type {(event: KeyboardEvent) => void} */
  function onkeydown(event) {
    const move = ARROWS[event.key];
    if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    point(null);
    const map = now();
    if (map) callWithin(map, [map.t + move[0], map.k + move[1]], pick);
  }

  return {
    onkeydown,
    onpointerdown: (event) => callAt(event, pick),
    onpointermove: (event) => event.pointerType === "mouse" && callAt(event, point),
    onpointerleave: () => point(null),
  };
}

/**
 * Calls `call` with the cell if the map has it.
 * @type {(map: MapView, cell: Pair, call: (cell: Pair) => void) => void}
 */
function callWithin({ blocks, reverse }, [t, k], call) {
  if (t >= 0 && k >= 0 && t < blocks && k < blocks && (reverse ? k >= t : k <= t)) call([t, k]);
}

/**
 * Paints the cells. Their borders are at whole device pixels, so that no seams show.
 * @type {(canvas: HTMLCanvasElement, map: MapView, side: number) => void}
 */
function paint(canvas, { blocks, reverse, at, top, low }, side) {
  const scale = globalThis.devicePixelRatio ?? 1;
  const pixels = Math.round(side * scale);
  canvas.width = canvas.height = pixels;
  canvas.style.width = canvas.style.height = `${side}px`;
  canvas.style.margin = `${TOP}px ${RIGHT}px ${BOTTOM}px ${LEFT}px`;
  const brush = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const style = getComputedStyle(canvas);
  const [wrong, paper] = [style.getPropertyValue("--wrong"), style.getPropertyValue("--paper")];
  /** @type {(i: number) => number} */
  const edge = (i) => Math.round((i * pixels) / blocks);
  /** @type {[number, number, number][]} */
  const marked = [];
  for (let t = 0; t < blocks; t++) {
    for (let k = reverse ? t : 0; k < (reverse ? blocks : t + 1); k++) {
      const value = at(t, k);
      if (value === -Infinity) continue;
      const finite = Number.isFinite(value);
      if (!finite) marked.push([t, k, value]);
      brush.fillStyle = finite ? colourOf((value - low) / (top - low || 1)) : wrong;
      brush.fillRect(edge(k), edge(t), edge(k + 1) - edge(k), edge(t + 1) - edge(t));
    }
  }
  hatch(brush, marked, edge, paper, Math.max(1, scale));
}

/**
 * Draws lines over what is not a number, and leaves what is infinite plain: colour alone does not tell them from
 * finite cells.
 * @type {(brush: CanvasRenderingContext2D, marked: [number, number, number][], edge: (i: number) => number, paper:
 *   string,
 *   thick: number) => void}
 */
function hatch(brush, marked, edge, paper, thick) {
  brush.save();
  brush.beginPath();
  for (const [t, k, value] of marked) {
    if (Number.isNaN(value)) brush.rect(edge(k), edge(t), edge(k + 1) - edge(k), edge(t + 1) - edge(t));
  }
  brush.clip();
  brush.beginPath();
  const size = brush.canvas.width;
  for (let x = -size; x < size; x += 7 * thick) {
    brush.moveTo(x, 0);
    brush.lineTo(x + size, size);
  }
  brush.strokeStyle = paper;
  brush.lineWidth = 1.5 * thick;
  brush.stroke();
  brush.restore();
}

/** @type {(map: MapView, side: number) => SVGElement[]} */
function axes({ steps }, side) {
  /** @type {(step: number) => number} */
  const at = (step) => ((step - 0.5) / steps) * side;
  /** @type {SVGElement[]} */
  const parts = [svg("path", { class: "frame", d: `M${LEFT} ${TOP} v${side} h${side}` })];
  for (const step of ticks(1, steps, side < 320 ? 4 : 6)) {
    const [x, y] = [LEFT + at(step), TOP + at(step)];
    parts.push(
      svg("text", { x, y: TOP + side + 18 }, step),
      svg("text", { x: LEFT - 8, y: y + 4, class: "end" }, step),
    );
  }
  return [
    ...parts,
    svg("text", { class: "axis", x: LEFT + side / 2, y: TOP + side + 38 }, "earlier step k"),
    svg("text", { class: "axis", x: -(TOP + side / 2), y: 14, transform: "rotate(-90)" }, "loss step t"),
  ];
}

/** @type {(map: MapView, side: number) => SVGElement} */
function chosen({ t, k, blocks }, side) {
  const size = side / blocks;
  const [x, y, wide] = [LEFT + k * size, TOP + t * size, Math.max(size, 5)];
  const box = { x: x + size / 2 - wide / 2, y: y + size / 2 - wide / 2, width: wide, height: wide };
  return svg(
    "g",
    {},
    svg("path", {
      class: "cross",
      d: `M${LEFT} ${y + size / 2} H${box.x} M${x + size / 2} ${box.y + wide} V${TOP + side}`,
    }),
    svg("rect", { class: "ring under", ...box }),
    svg("rect", { class: "ring", ...box }),
  );
}
