// Scene 2, lecture lines 5 to 7: the forward pass with its live numbers, in both forms of line 5.
import { el } from "../components/dom.js";
import {
  activationChoice,
  biasEditor,
  headChoice,
  inputEditor,
  lossStepSlider,
  weightEditor,
} from "../components/editors.js";
import { formula, liveFormula, matrixText } from "../components/formula.js";
import { networkDrawing } from "../components/network.js";
import { plain, show } from "../components/numbers.js";
import { PRINT, digits, formatOf, loop, numbers, outputCode } from "../components/pytorch.js";

const HIDDEN = { tanh: "tanh", sigmoid: "σ", relu: "ReLU" };
const OUTPUT = { softmax: "softmax", sigmoid: "σ", linear: "" };

export const scene = { id: "forward", order: 2, short: "Forward", title: "Forward, with the numbers", mount, pytorch };

function mount(root, page) {
  const drawing = networkDrawing(
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
  root.append(
    el(
      "p",
      { class: "lead" },
      "Each step takes the input x(t) and the previous hidden state h(t−1). Change any number: all that " +
        "follows from it changes.",
    ),
    drawing,
    el("div", { class: "controls" }, lossStepSlider(page), activationChoice(page), headChoice(page)),
    equation(
      page,
      "Net input, as a sum of two products",
      formula("z_h(t) =", "\\hx{W_{hx}} x(t)", "+ \\hh{W_{hh}} h(t-1)", "+ b_h"),
      [numbersOfSum],
    ),
    equation(
      page,
      "The same in one product",
      formula("z_h(t) =", "\\matrix{\\hx{W_{hx}}, \\hh{W_{hh}}} \\matrix{x(t); h(t-1)}", "+ b_h"),
      [numbersOfOne],
    ),
    equation(page, "Hidden state", formula("h(t) = σ_h(z_h(t))"), [numbersOfHidden]),
    equation(page, "Output", formula("z_y(t) = \\yh{W_{yh}} h(t) + b_y,", "y(t) = σ_y(z_y(t))"), [
      numbersOfNet,
      numbersOfOutput,
    ]),
    el("h3", {}, "The numbers to change"),
    el(
      "div",
      { class: "matrices" },
      weightEditor(page, "hx"),
      weightEditor(page, "hh"),
      biasEditor(page, "h"),
      weightEditor(page, "yh"),
      biasEditor(page, "y"),
      inputEditor(page),
    ),
  );
}

// A title, the formula, and below it the formula with its numbers; each of `makers` gives a line of chunks.
function equation(page, title, symbols, makers) {
  const lines = makers.map((make) => liveFormula(page, make));
  return el("div", { class: "equation" }, el("h3", {}, title), symbols, lines);
}

const given = (values) => matrixText(values, plain);
const found = (values) => matrixText(values, show);

function numbersOfSum({ W_hx, W_hh, b_h, x, t }, { forward }) {
  return [
    `z_h(${t}) =`,
    `\\hx{${given(W_hx)}}`,
    given(x[t - 1]),
    `+ \\hh{${given(W_hh)}}`,
    found(forward.steps[t - 1].h),
    `+ ${given(b_h)}`,
    `= ${found(forward.steps[t].z)}`,
  ];
}

function numbersOfOne({ W_hx, W_hh, b_h, x, t }, { forward }) {
  const colours = (row, i) => [...row.map((w) => `\\hx{${plain(w)}}`), ...W_hh[i].map((w) => `\\hh{${plain(w)}}`)];
  const both = matrixText(W_hx.map(colours), String);
  const stacked = matrixText([...x[t - 1].map(plain), ...forward.steps[t - 1].h.map((h) => show(h))], String);
  return [`z_h(${t}) =`, both, stacked, `+ ${given(b_h)}`, `= ${found(forward.steps[t].z)}`];
}

function numbersOfHidden({ activation, t }, { forward }) {
  return [`h(${t}) = \\fn{${HIDDEN[activation]}} ${found(forward.steps[t].z)}`, `= ${found(forward.steps[t].h)}`];
}

function numbersOfNet({ t }, { net, forward }) {
  return [
    `z_y(${t}) =`,
    `\\yh{${given(net.W_yh)}}`,
    found(forward.steps[t].h),
    `+ ${given(net.b_y)}`,
    `= ${found(forward.outputs[t].z)}`,
  ];
}

function numbersOfOutput({ head, t }, { forward }) {
  const name = OUTPUT[head] ? `\\fn{${OUTPUT[head]}}` : "";
  return [`y(${t}) = ${name} ${found(forward.outputs[t].z)}`, `= ${found(forward.outputs[t].y)}`];
}

function pytorch(state, { net, forward }) {
  const rows = forward.steps.slice(1).map((step, i) => [...step.h, ...forward.outputs[i + 1].y]);
  const format = formatOf(...rows);
  const code = [
    ...numbers(state, { net }),
    ...loop(net, forward.T),
    `    ${PRINT(`(*h.tolist(), *(${outputCode(net)}).tolist())`, format)}`,
  ];
  return { code: code.join("\n"), prints: rows.map((row) => digits(row, format)).join("\n") };
}
