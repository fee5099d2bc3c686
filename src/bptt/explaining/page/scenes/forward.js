// Scene 2, eq. (5) to (7): the forward pass with its live numbers, in both forms of eq. (5).
import { controls, equation, lead, numbersToChange } from "../components/blocks.js";
import { activationChoice, headChoice, lossStepSlider, networkEditors } from "../components/editors.js";
import { formula, liveFormula, matrixText, numbersOf } from "../components/formula.js";
import { networkDrawing } from "../components/network.js";
import { plain, show } from "../components/numbers.js";
import { digits, formatOf, loop, numbers, outputCode, printOf } from "../components/pytorch.js";
/** @import { Page, Parameter, Program, Results, Scene, State, Vector } from "../types.d.ts" */

const HIDDEN = { tanh: "tanh", sigmoid: "σ", relu: "ReLU" };
const OUTPUT = { softmax: "softmax", sigmoid: "σ", linear: "" };

/** @type {Scene} */
export const scene = { id: "forward", order: 2, short: "Forward", title: "Forward, with the numbers", mount, pytorch };

/** @type {Scene["mount"]} */
function mount(root, page) {
  root.append(
    lead(
      "Each step takes the input x(t) and the previous hidden state h(t−1). Change any number: all that " +
        "follows from it changes.",
    ),
    drawing(page),
    controls(lossStepSlider(page), activationChoice(page), headChoice(page)),
    equation(
      "Net input, as a sum of two products",
      formula("z_h(t) =", "\\hx{W_{hx}} x(t)", "+ \\hh{W_{hh}} h(t-1)", "+ b_h"),
      liveFormula(page, numbersOfSum),
    ),
    equation(
      "The same in one product",
      formula("z_h(t) =", "\\matrix{\\hx{W_{hx}}, \\hh{W_{hh}}} \\matrix{x(t); h(t-1)}", "+ b_h"),
      liveFormula(page, numbersOfOne),
    ),
    equation("Hidden state", formula("h(t) = σ_h(z_h(t))"), liveFormula(page, numbersOfHidden)),
    equation(
      "Output",
      formula("z_y(t) = \\yh{W_{yh}} h(t) + b_y,", "y(t) = σ_y(z_y(t))"),
      liveFormula(page, numbersOfNet),
      liveFormula(page, numbersOfOutput),
    ),
    ...numbersToChange(networkEditors(page)),
  );
}

/** @type {(page: Page) => HTMLElement} */
function drawing(page) {
  return networkDrawing(
    page,
    ({ x, t }) => ({
      T: x.length,
      lit: new Set([`x${t}`, `h${t - 1}`, `h${t}`, `y${t}`, `hx${t}`, `hh${t}`, `yh${t}`]),
      label: `The unfolded network; step ${t} of ${x.length} is lit`,
    }),
    (key, t, what) => {
      if (what === "click" && t > 0) page.set(({ k }) => ({ t, k: Math.min(k, t) }));
    },
  );
}

/** @type {(values: Parameter) => string} */
const given = (values) => matrixText(values, plain);

/** @type {(state: State, results: Results) => string[]} */
function numbersOfSum({ W_hx, W_hh, b_h, x, t }, { forward }) {
  return [
    `z_h(${t}) =`,
    `\\hx{${given(W_hx)}}`,
    given(x[t - 1]),
    `+ \\hh{${given(W_hh)}}`,
    numbersOf(forward.steps[t - 1].h),
    `+ ${given(b_h)}`,
    `= ${numbersOf(forward.steps[t].z)}`,
  ];
}

/** @type {(state: State, results: Results) => string[]} */
function numbersOfOne({ W_hx, W_hh, b_h, x, t }, { forward }) {
  /** @type {(row: Vector, i: number) => string[]} */
  const colours = (row, i) => [...row.map((w) => `\\hx{${plain(w)}}`), ...W_hh[i].map((w) => `\\hh{${plain(w)}}`)];
  const both = matrixText(W_hx.map(colours), String);
  const stacked = matrixText([...x[t - 1].map(plain), ...forward.steps[t - 1].h.map((h) => show(h))], String);
  return [`z_h(${t}) =`, both, stacked, `+ ${given(b_h)}`, `= ${numbersOf(forward.steps[t].z)}`];
}

/** @type {(state: State, results: Results) => string[]} */
function numbersOfHidden({ activation, t }, { forward }) {
  return [
    `h(${t}) = \\fn{${HIDDEN[activation]}} ${numbersOf(forward.steps[t].z)}`,
    `= ${numbersOf(forward.steps[t].h)}`,
  ];
}

/** @type {(state: State, results: Results) => string[]} */
function numbersOfNet({ t }, { net, forward }) {
  return [
    `z_y(${t}) =`,
    `\\yh{${given(net.W_yh)}}`,
    numbersOf(forward.steps[t].h),
    `+ ${given(net.b_y)}`,
    `= ${numbersOf(forward.outputs[t].z)}`,
  ];
}

/** @type {(state: State, results: Results) => string[]} */
function numbersOfOutput({ head, t }, { forward }) {
  const name = OUTPUT[head] ? `\\fn{${OUTPUT[head]}}` : "";
  return [`y(${t}) = ${name} ${numbersOf(forward.outputs[t].z)}`, `= ${numbersOf(forward.outputs[t].y)}`];
}

/** @type {(state: State, results: Results) => Program} */
function pytorch(state, { net, forward }) {
  const rows = forward.steps.slice(1).map((step, i) => [...step.h, ...forward.outputs[i + 1].y]);
  const format = formatOf(...rows);
  const code = [
    ...numbers(state, { net }),
    ...loop(net, forward.T),
    `    ${printOf(`(*h.tolist(), *(${outputCode(net)}).tolist())`, format)}`,
  ];
  return { code: code.join("\n"), prints: rows.map((row) => digits(row, format)).join("\n") };
}
