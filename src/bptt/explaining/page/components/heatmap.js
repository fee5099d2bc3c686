// A large map (t, k) on a canvas, its colours by the decade; row t downwards, column k to the right. One cell is chosen, by
// pointer or arrow keys. The axes and the frame of the chosen cell are SVG above the canvas.
import { el, onWidth, svg, uniqueName } from "./dom.js";
import { colourOf } from "./decades.js";
import { ticks } from "./ticks.js";

const [LEFT, TOP, RIGHT, BOTTOM] = [62, 8, 12, 46];
const WIDEST = 560;

// describe(state) → {id: changes when the picture does, blocks, reverse, at: (t, k) → log10 of the cell, top: log10 of the
// largest, low, t, k: the chosen cell, steps, label}, or null where there is no map. pick(t, k) is called with another cell,
// point(t, k) with the cell under a mouse, and point(null) when it leaves.
export function heatmap(page, describe, pick, point) {
  const canvas = el("canvas");
  const over = svg("svg", { "aria-hidden": "true" });
  const help = uniqueName("keys");
  const stage = el(
    "div",
    {
      class: "heatmap",
      role: "img",
      tabindex: "0",
      "aria-describedby": help,
      onkeydown,
      onpointerdown,
      onpointermove,
      onpointerleave,
    },
    canvas,
    over,
  );
  const host = el(
    "div",
    { class: "heatmap-host" },
    stage,
    el("small", { id: help }, "Point at a cell, or use the arrow keys."),
  );
  let width = 0;
  let now = null;
  let painted = "";

  function update(state) {
    now = describe(state);
    host.hidden = now === null;
    if (now === null || width === 0) return;
    const side = width - LEFT - RIGHT;
    const id = `${now.id} ${side}`;
    if (painted !== id) paint(canvas, now, side);
    painted = id;
    stage.setAttribute("aria-label", now.label);
    over.setAttribute("width", width);
    over.setAttribute("height", side + TOP + BOTTOM);
    over.replaceChildren(...axes(now, side), chosen(now, side));
  }

  function onkeydown(event) {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    point(null);
    const { t, k } = describe(page.get()); // keys may come faster than repaints
    choose(t + move[0], k + move[1], pick);
  }

  function onpointerdown(event) {
    choose(...cellAt(event), pick);
  }

  function onpointermove(event) {
    if (event.pointerType === "mouse") choose(...cellAt(event), point);
  }

  function onpointerleave() {
    point(null);
  }

  function cellAt(event) {
    const box = canvas.getBoundingClientRect();
    const cell = (offset) => Math.floor((offset / box.width) * now.blocks);
    return [cell(event.clientY - box.top), cell(event.clientX - box.left)];
  }

  function choose(t, k, call) {
    if (t >= 0 && k >= 0 && t < now.blocks && k < now.blocks && (now.reverse ? k >= t : k <= t)) call(t, k);
  }

  page.follow(update);
  onWidth(host, (wide) => {
    width = Math.min(wide, WIDEST);
    page.refresh();
  });
  globalThis.matchMedia?.("(prefers-color-scheme: dark)").addEventListener("change", () => {
    painted = "";
    page.refresh();
  });
  return host;
}

// Borders of whole device pixels, so that no seams show.
function paint(canvas, { blocks, reverse, at, top, low }, side) {
  const scale = globalThis.devicePixelRatio ?? 1;
  const pixels = Math.round(side * scale);
  canvas.width = canvas.height = pixels;
  canvas.style.width = canvas.style.height = `${side}px`;
  canvas.style.margin = `${TOP}px ${RIGHT}px ${BOTTOM}px ${LEFT}px`;
  const brush = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  const [wrong, paper] = [style.getPropertyValue("--wrong"), style.getPropertyValue("--paper")];
  const edge = (i) => Math.round((i * pixels) / blocks);
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

// What is no number bears lines, what is infinite stays plain: colour alone does not tell them from finite cells.
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

function axes({ steps }, side) {
  const at = (step) => ((step - 0.5) / steps) * side;
  const parts = [svg("path", { class: "frame", d: `M${LEFT} ${TOP} v${side} h${side}` })];
  for (const step of ticks(1, steps, side < 320 ? 4 : 6)) {
    const [x, y] = [LEFT + at(step), TOP + at(step)];
    parts.push(svg("text", { x, y: TOP + side + 18 }, step), svg("text", { x: LEFT - 8, y: y + 4, class: "end" }, step));
  }
  return [
    ...parts,
    svg("text", { class: "axis", x: LEFT + side / 2, y: TOP + side + 38 }, "earlier step k"),
    svg("text", { class: "axis", x: -(TOP + side / 2), y: 14, transform: "rotate(-90)" }, "loss step t"),
  ];
}

function chosen({ t, k, blocks }, side) {
  const size = side / blocks;
  const [x, y, wide] = [LEFT + k * size, TOP + t * size, Math.max(size, 5)];
  const box = { x: x + size / 2 - wide / 2, y: y + size / 2 - wide / 2, width: wide, height: wide };
  return svg(
    "g",
    {},
    svg("path", { class: "cross", d: `M${LEFT} ${y + size / 2} H${box.x} M${x + size / 2} ${box.y + wide} V${TOP + side}` }),
    svg("rect", { class: "ring under", ...box }),
    svg("rect", { class: "ring", ...box }),
  );
}
