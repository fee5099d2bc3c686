// The network drawn compact, unfolded, or anything in between (eq. (2)).
//
// Keys of what can be lit: the matrices "hx" "hh" "yh" (every copy), one edge "hx3" "hh3" "yh3" (the one that ends in,
// or starts from, step 3) and "loss3", one node "x3" "h3" "y3" "L3"; h0 is the start. "lag" and "lag3" are the edges of
// a second lag, W_hh2, from h(t−2) to h(t); they are drawn when unfolded.
import { el, followWide, svg } from "./dom.js";
/** @import { FromOne, NetworkView, Page, PickPart, Results, State, Vector } from "../types.d.ts" */

// Heights of the rows.
const ROWS = { L: 30, y: 106, h: 206, x: 306 };
const EDGES = ["hx", "hh", "yh", "loss"];
const LABELLED = 60; // pixels between two steps, from which each edge bears its matrix's name; else the last alone
const WIDEST = 165;
const SCISSORS = "M-5 4 a2.8 2.8 0 1 0 .1 0 M5 4 a2.8 2.8 0 1 0 .1 0 M-3.6 4.4 L5 -10 M3.6 4.4 L-5 -10";
const LAG_ROOM = 44; // pixels more between h and x for the edges of lag 2

/**
 * @typedef {object} EdgePart
 * @property {SVGElement} group
 * @property {SVGElement} line
 * @property {SVGElement} head
 * @property {SVGElement} wide
 * @property {SVGElement | null} name
 * @property {SVGElement} scissors
 * @property {string} kind
 * @property {true} edge
 *
 * @typedef {{ group: SVGElement, shape: SVGElement, name: SVGElement, kind: keyof typeof ROWS, edge: false }} NodePart
 * @typedef {EdgePart | NodePart} NewPart
 * @typedef {{ key: string, t: number }} Placed
 * @typedef {(EdgePart & Placed) | (NodePart & Placed)} Part
 * @typedef {{ root: SVGElement, parts: Map<string, Part>, T: number, losses: boolean, lag2: boolean }} Drawing
 *
 * @typedef {object} Places lengths in pixels
 * @property {number} T
 * @property {number} open
 * @property {number} gap between two steps
 * @property {number} radius of a node
 * @property {(t: number) => number} column where step t stands
 * @property {typeof ROWS} rows
 * @property {boolean} lag2
 */

/**
 * A drawing that follows the state. pick(key, t, "enter" | "leave" | "click") is called when a part is pointed at or
 * clicked.
 * @type {(page: Page, describe: (state: State, results: Results) => NetworkView, pick?: PickPart) => HTMLElement}
 */
export function networkDrawing(page, describe, pick) {
  const host = el("div", { class: "drawing" });
  /** @type {Drawing | null} */
  let drawing = null;
  followWide(page, host, (width, state, results) => {
    if (width === 0) return;
    const wanted = { open: 1, lit: new Set(), losses: false, lag2: false, ...describe(state, results) };
    if (drawing?.T !== wanted.T || drawing.losses !== wanted.losses || drawing.lag2 !== wanted.lag2) {
      drawing = build(wanted, pick);
      host.replaceChildren(drawing.root);
    }
    drawing.root.setAttribute("aria-label", wanted.label);
    place(drawing, width, wanted.open);
    light(drawing, wanted);
  });
  return host;
}

/** @type {(view: { T: number, losses: boolean, lag2: boolean }, pick?: PickPart) => Drawing} */
function build({ T, losses, lag2 }, pick) {
  const root = svg("svg", { role: "img", class: "network" });
  const parts = new Map();
  /** @type {(key: string, t: number, part: NewPart) => void} */
  const add = (key, t, part) => {
    part.group.setAttribute("data-key", key);
    if (pick) listen(part.group, key, t, pick);
    parts.set(key, { ...part, key, t });
    root.append(part.group);
  };
  for (let t = 1; t <= T; t++) {
    for (const kind of losses ? EDGES : EDGES.slice(0, 3)) add(`${kind}${t}`, t, edge(kind));
  }
  for (let t = 2; lag2 && t <= T; t++) add(`lag${t}`, t, edge("lag"));
  for (let t = 0; t <= T; t++) {
    for (const kind of nodesOf(t, losses)) add(`${kind}${t}`, t, circle(kind));
  }
  return { root, parts, T, losses, lag2 };
}

/**
 * The kinds of nodes that step t has; the start, t = 0, has a hidden state alone.
 * @type {(t: number, losses: boolean) => (keyof typeof ROWS)[]}
 */
function nodesOf(t, losses) {
  if (t === 0) return ["h"];
  return losses ? ["x", "h", "y", "L"] : ["x", "h", "y"];
}

/** @type {(kind: string) => EdgePart} */
function edge(kind) {
  const line = svg("path", { class: "line" });
  const head = svg("path", { class: "head", d: "M-8 -4 L0 0 L-8 4 z" });
  const wide = svg("path", { class: "touch" }); // a finger needs more than a line
  const name =
    kind === "loss"
      ? null
      : svg("text", { class: "name" }, "W", svg("tspan", { dy: 4, class: "index" }, kind === "lag" ? "hh2" : kind));
  const scissors = svg("path", { class: "scissors", d: SCISSORS });
  const group = svg("g", { class: `edge ${kind}` }, wide, line, head, name, scissors);
  return { group, line, head, wide, name, scissors, kind, edge: true };
}

/** @type {(kind: keyof typeof ROWS) => NodePart} */
function circle(kind) {
  const shape = svg("circle");
  const name = svg("text", { class: "node-name" });
  return { group: svg("g", { class: `node ${kind}` }, shape, name), shape, name, kind, edge: false };
}

/** @type {(group: SVGElement, key: string, t: number, pick: PickPart) => void} */
function listen(group, key, t, pick) {
  group.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && pick(key, t, "enter"));
  group.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && pick(key, t, "leave"));
  group.addEventListener("click", () => pick(key, t, "click"));
}

/**
 * Moves every part to its place: at open = 0 all steps lie on one another, at 1 they stand side by side.
 * @type {(drawing: Drawing, width: number, open: number) => void}
 */
function place({ root, parts, T, losses, lag2 }, width, open) {
  const top = losses ? 0 : ROWS.y - 34;
  const rows = { ...ROWS, x: ROWS.x + (lag2 ? LAG_ROOM : 0) };
  const height = rows.x + 34 - top;
  const margin = 30;
  const span = Math.min(width - 2 * margin, T * WIDEST);
  const gap = span / T;
  const radius = Math.min(25, Math.max(gap * 0.28, Math.min(16, gap * 0.4)));
  /** @type {(t: number) => number} */
  const column = (t) => width / 2 + open * ((t - T / 2) * gap);
  const at = { T, open, gap, radius, column, rows, lag2 };
  root.setAttribute("viewBox", `0 ${top} ${width} ${height}`);
  root.setAttribute("width", String(width));
  root.setAttribute("height", String(height));
  for (const part of parts.values()) {
    const last = part.t === T;
    part.group.style.opacity = last ? "" : String(Math.min(1, open * 1.6));
    part.group.classList.toggle("away", !last && open === 0);
    if (!part.edge) placeNode(part, at);
    else if (part.kind === "lag") placeLag(part, at);
    else placeEdge(part, at);
  }
}

/** @type {(part: EdgePart & Placed, at: Places) => void} */
function placeEdge({ line, head, wide, name, scissors, kind, t }, at) {
  const { T, open, gap, radius, column } = at;
  const x = column(t);
  const ends = endsOf(kind, at);
  const { path, end, angle } = ends ? upward(x, ends, radius) : recurrent(column(t - 1), x, radius, 1 - open);
  line.setAttribute("d", path);
  wide.setAttribute("d", path);
  head.setAttribute("transform", `translate(${end}) rotate(${angle})`);
  if (!name) return;
  name.style.display = open * gap >= LABELLED || t === T ? "" : "none";
  const [left, base] = namePlace(kind, t, at);
  name.setAttribute("x", String(left));
  name.setAttribute("y", String(base));
  scissors.setAttribute("transform", `translate(${(column(t - 1) + x) / 2} ${ROWS.h})`);
}

/**
 * Where an edge between two rows starts and ends; null for a recurrent one.
 * @type {(kind: string, at: Places) => Vector | null}
 */
function endsOf(kind, { rows }) {
  /** @type {Record<string, Vector>} */
  const ends = { hx: [rows.x, ROWS.h], yh: [ROWS.h, ROWS.y], loss: [ROWS.y, ROWS.L] };
  return ends[kind] ?? null;
}

/**
 * Where an edge's name stands: beside it, below the loop of the folded network, or above the line to h(t).
 * @type {(kind: string, t: number, at: Places) => Vector}
 */
function namePlace(kind, t, at) {
  const { open, radius, column, lag2 } = at;
  const ends = endsOf(kind, at);
  if (ends) return [column(t) - 9, (ends[0] + ends[1]) / 2 + (lag2 && kind === "hx" ? 38 : 6)];
  if (open < 0.3) return [column(t) + radius + 94, ROWS.h + 5];
  return [(column(t - 1) + column(t)) / 2 + 14, ROWS.h - Math.max(12, 30 - radius / 2)];
}

/**
 * Moves an edge of lag 2 to its place, from h(t−2) below h(t−1) to h(t).
 * @type {(part: EdgePart & Placed, at: Places) => void}
 */
function placeLag({ line, head, wide, name, t }, { gap, radius, column }) {
  const [from, over, to] = [column(t - 2), column(t - 1), column(t)];
  const [side, down] = [0.62 * radius, ROWS.h + 0.78 * radius];
  const end = [to - side - 1, down + 2];
  const low = ROWS.h + radius + 48;
  const bend = 0.45 * gap;
  const path = `M${from + side} ${down} C${from + side + bend} ${low} ${end[0] - bend} ${low} ${end[0] - 2} ${end[1] + 4}`;
  line.setAttribute("d", path);
  wide.setAttribute("d", path);
  head.setAttribute("transform", `translate(${end}) rotate(${(Math.atan2(end[1] - low, bend) * 180) / Math.PI})`);
  if (name) name.style.display = gap >= LABELLED || t === 2 ? "" : "none";
  name?.setAttribute("x", String(over + 42));
  name?.setAttribute("y", String(ROWS.h + radius + 54));
}

/** @type {(x: number, ends: Vector, radius: number) => { path: string, end: Vector, angle: number }} */
function upward(x, [from, to], radius) {
  const end = [x, to + radius + 1];
  return { path: `M${x} ${from - radius} L${x} ${end[1] + 4}`, end, angle: -90 };
}

/**
 * The path from h(t−1) to h(t): a straight line when unfolded, a loop on the right of the node when folded.
 * @type {(from: number, to: number, radius: number, folded: number) => { path: string, end: Vector, angle: number }}
 */
function recurrent(from, to, radius, folded) {
  const leave = -0.9 * folded;
  const arrive = Math.PI - (Math.PI - 0.9) * folded; // from the left, by below, to the right
  /** @type {(x: number, turn: number, distance: number) => Vector} */
  const on = (x, turn, distance) => [x + distance * Math.cos(turn), ROWS.h + distance * Math.sin(turn)];
  const bend = 95 * folded;
  const start = on(from, leave, radius);
  const end = on(to, arrive, radius + 1);
  const path = `M${start} C${on(from, leave, radius + bend)} ${on(to, arrive, radius + 5 + bend)} ${on(to, arrive, radius + 5)}`;
  return { path, end, angle: (arrive * 180) / Math.PI - 180 };
}

/** @type {(part: NodePart & Placed, at: Places) => void} */
function placeNode({ shape, name, kind, t }, { T, open, gap, radius, column, rows }) {
  const [x, y] = [column(t), rows[kind]];
  for (const [attribute, value] of Object.entries({ cx: x, cy: y, r: radius }))
    shape.setAttribute(attribute, String(value));
  name.setAttribute("x", String(x));
  name.setAttribute("y", String(y + 5));
  name.textContent = open < 0.3 && t === T ? kind : `${kind}(${t})`;
  name.classList.toggle("small", radius < 18);
  name.style.display = open * gap >= 2 * radius || t === T ? "" : "none";
}

/** @type {(drawing: Drawing, view: { lit: Set<string>, counts?: FromOne<boolean>, cut?: Set<string> }) => void} */
function light({ parts }, { lit, counts, cut }) {
  for (const part of parts.values()) {
    const on = lit.has(part.key) || (part.edge && lit.has(part.kind));
    part.group.classList.toggle("lit", on);
    part.group.classList.toggle("dim", lit.size > 0 && !on);
    const ignored = (part.kind === "loss" || part.kind === "L") && counts && !counts[part.t];
    part.group.classList.toggle("ignored", Boolean(ignored));
    part.group.classList.toggle("cut", Boolean(cut?.has(part.key)));
  }
}
