// Gates over the steps as valves: a column a step, a row a unit, filled as far as the gate is open.
import { el, followWide, svg } from "./dom.js";
import { ticks } from "./ticks.js";
/** @import { Matrix, Page, State } from "../types.d.ts" */

const [LEFT, RIGHT, ROW] = [52, 16, 20];

/**
 * A drawing of the gates; gates[step][unit] is between 0, shut, and 1, open.
 * @type {(page: Page, describe: (state: State) => { gates: Matrix, label: string }) => HTMLElement}
 */
export function valves(page, describe) {
  const host = el("div", { class: "valves" });
  followWide(page, host, (width, state) => {
    if (width > 0) host.replaceChildren(drawn(describe(state), width));
  });
  return host;
}

/** @type {(shown: { gates: Matrix, label: string }, width: number) => SVGElement} */
function drawn({ gates, label }, width) {
  const units = gates[0].length;
  const gap = (width - LEFT - RIGHT) / gates.length;
  const height = units * ROW + 46;
  const root = svg("svg", { role: "img", "aria-label": label, width, height, viewBox: `0 0 ${width} ${height}` });
  const [wide, tall] = [Math.min(14, gap * 0.72), ROW - 5];
  for (let j = 0; j < units; j++) {
    root.append(svg("text", { class: "tick left", x: LEFT - 10, y: j * ROW + tall }, `f${"₁₂₃₄₅₆₇₈₉"[j]}`));
    // one path for all frames and one for all fillings of a unit: few elements, quick to repaint
    const at = gates.map((_, t) => LEFT + (t + 0.5) * gap - wide / 2);
    const open = gates.map((gate) => (Number.isFinite(gate[j]) ? gate[j] * tall : 0));
    root.append(
      svg("path", { class: "pipe", d: at.map((x) => `M${x} ${j * ROW} h${wide} v${tall} h${-wide} z`).join("") }),
      svg("path", {
        class: "flow",
        d: at.map((x, t) => `M${x} ${j * ROW + tall} v${-open[t]} h${wide} v${open[t]} z`).join(""),
      }),
    );
  }
  for (const t of ticks(1, gates.length, Math.min(10, width / 60)))
    root.append(svg("text", { class: "tick", x: LEFT + (t - 0.5) * gap, y: units * ROW + 16 }, t));
  root.append(svg("text", { class: "tick", x: (LEFT + width - RIGHT) / 2, y: height - 6 }, "step t"));
  return root;
}
