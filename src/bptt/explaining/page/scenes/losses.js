// Scene 3, eq. (8): a loss at each step, and their sum.
import { controls, equation, lead, numbersToChange } from "../components/blocks.js";
import { el, followWide, svg } from "../components/dom.js";
import { countedChoice, headChoice, inputEditor, targetEditors, weightEditor } from "../components/editors.js";
import { formula, liveFormula, maths } from "../components/formula.js";
import { networkDrawing } from "../components/network.js";
import { show } from "../components/numbers.js";
import { predictFirst } from "../components/predict.js";
import { digits, formatOf, lossCode, loop, numbers, printOf } from "../components/pytorch.js";
import { sentence } from "../components/sentence.js";
/** @import { Forward, Page, Program, Results, Scene, State } from "../types.d.ts" */

const FORMULAS = {
  softmax: ["L(t) = −\\fn{ln~} y_{\\text{target}}(t)"],
  sigmoid: ["L(t) = −\\fn{ln~} y(t) \\text{~if~the~target~is~1,}", "−\\fn{ln}(1 − y(t)) \\text{~if~it~is~0}"],
  linear: ["L(t) = \\sum_i (y_i(t) − \\text{target}_i(t))^2"],
};

/** @type {Scene} */
export const scene = { id: "losses", order: 3, short: "Losses", title: "A loss at each step", mount, pytorch };

/** @type {Scene["mount"]} */
function mount(root, page) {
  root.append(
    lead(
      "Many-to-many: the network is judged at every step, and the overall loss is the sum. Many-to-one: " +
        "one loss at the last step is enough.",
    ),
    drawing(page),
    controls(countedChoice(page), headChoice(page)),
    equation(
      "The loss of one step",
      liveFormula(page, ({ head }) => FORMULAS[head]),
    ),
    equation("The overall loss", liveFormula(page, total), bars(page)),
    sentence(page, remark, { class: "said" }),
    question(page),
    ...numbersToChange(targetEditors(page), inputEditor(page), weightEditor(page, "yh"), weightEditor(page, "hh")),
  );
}

/** @type {(page: Page) => HTMLElement} */
function drawing(page) {
  return networkDrawing(page, ({ x, counted }, { forward }) => ({
    T: x.length,
    losses: true,
    counts: forward.counts,
    label: `The unfolded network with a loss above each output; ${counted === "each" ? "all count" : "only the last counts"}`,
  }));
}

/** @type {(page: Page) => HTMLElement} */
function question(page) {
  return predictFirst(page, {
    question: ["Only the last loss counts. Does ", maths("\\hh{W_{hh}}"), " still get a gradient through step 2?"],
    options: ["no, step 2 has no loss", "yes, through the hidden states", "only if T = 2"],
    right: 1,
    why: [
      el(
        "p",
        {},
        "The last loss depends on h(T), which depends on h(T−1), and so on back to h(1). One loss gives a term for " +
          "every step k (that of k = 1 is zero here, since h(0) = 0):",
      ),
      formula(
        "\\frac{∂L(T)}{∂\\hh{W_{hh}}}",
        "= \\frac{∂L(T)}{∂y(T)} \\frac{∂y(T)}{∂h(T)}",
        "\\sum_{k=1}^{T} \\frac{∂h(T)}{∂h(k)} \\frac{∂^+h(k)}{∂\\hh{W_{hh}}}",
      ),
    ],
  });
}

/**
 * L as a sum with its numbers.
 * @type {(state: State, results: Results) => string[]}
 */
function total({ counted }, { forward: { T, losses, loss } }) {
  if (counted === "last") return [`L = L(T) = L(${T})`, `= ${show(loss)}`];
  const parts = losses.slice(1).map((value, i) => `${i === 0 ? "=" : "+"} ${show(value)}`);
  return ["L = \\sum_{t=1}^{T} L(t)", ...parts, `= ${show(loss)}`];
}

/** @type {(state: State) => string} */
const remark = ({ counted }) =>
  counted === "each"
    ? "Every L(t) is in the sum, so every step gets a gradient of its own."
    : "The other losses are left out of the sum. Some keep them, because they help to train the earlier steps.";

/**
 * L(t) as bars, each with its number; a loss that does not count is hollow.
 * @type {(page: Page) => HTMLElement}
 */
function bars(page) {
  const host = el("div", { class: "bars" });
  followWide(page, host, (width, state, { forward }) => {
    if (width > 0) host.replaceChildren(barChart(forward, width));
  });
  return host;
}

const [HEIGHT, BASE, TOP] = [150, 122, 24];

/** @type {(forward: Forward, width: number) => SVGElement} */
function barChart({ T, losses, counts }, width) {
  const gap = Math.min(110, width / T);
  const left = (width - gap * T) / 2;
  const finite = losses.filter(Number.isFinite);
  const largest = Math.max(...finite, 1e-300);
  const said = losses
    .slice(1)
    .map((loss, i) => `L(${i + 1}) ${show(loss)}`)
    .join(", ");
  const root = svg("svg", {
    role: "img",
    "aria-label": said,
    width,
    height: HEIGHT,
    viewBox: `0 0 ${width} ${HEIGHT}`,
  });
  for (let t = 1; t <= T; t++) {
    const x = left + (t - 0.5) * gap;
    const size = Number.isFinite(losses[t]) ? Math.max(1, (BASE - TOP) * (losses[t] / largest)) : BASE - TOP;
    const bar = {
      x: x - gap * 0.28,
      y: BASE - size,
      width: gap * 0.56,
      height: size,
      class: counts[t] ? "bar" : "bar ignored",
    };
    root.append(
      svg("rect", bar),
      svg("text", { x, y: BASE - size - 7, class: "value" }, show(losses[t], gap < 60 ? 2 : 3)),
      svg("text", { x, y: BASE + 20, class: "step" }, `L(${t})`),
    );
  }
  return root;
}

/** @type {(state: State, results: Results) => Program} */
function pytorch(state, { net, forward }) {
  const { losses, loss, T } = forward;
  const values = [...losses.slice(1), loss];
  const format = formatOf(values);
  const code = [
    ...numbers(state, { net }),
    "L = []",
    ...loop(net, T),
    `    L.append(${lossCode(net)})`,
    `total = ${state.counted === "each" ? "sum(L)" : "L[-1]"}`,
    printOf("(*L, total)", format),
  ];
  return { code: code.join("\n"), prints: digits(values, format) };
}
