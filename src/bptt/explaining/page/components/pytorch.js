// Lines of torch code for the shared network, for `scene.pytorch`. `prints` is text that must come out to the last
// digit.

/** @import { Parameter, RnnNetwork, State } from "../types.d.ts" */

const ACTIVATION = { tanh: "torch.tanh", sigmoid: "torch.sigmoid", relu: "torch.relu" };
const OUTPUT = { softmax: "z.softmax(0)", sigmoid: "z.sigmoid()", linear: "z" };
const LOSS = {
  softmax: "torch.nn.functional.cross_entropy(z, target[t])",
  sigmoid: "torch.nn.functional.binary_cross_entropy_with_logits(z, target[t])",
  linear: "((z - target[t]) ** 2).sum()",
};

/**
 * A number, vector or matrix as Python writes it.
 * @type {(value: number | Parameter) => string}
 */
export function python(value) {
  return Array.isArray(value) ? `[${value.map(python).join(", ")}]` : String(value);
}

/**
 * A number with this many decimals as Python writes it: a negative zero keeps its sign.
 * @type {(value: number, decimals: number) => string}
 */
export function fixed(value, decimals) {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  return `${Object.is(value, -0) ? "-" : ""}${value.toFixed(decimals)}`;
}

/**
 * Python's format of these numbers in which each digit is certain: ten decimals, fewer where the numbers are
 * large.
 * @type {(...rows: number[][]) => string}
 */
export function formatOf(...rows) {
  const largest = Math.max(1, ...rows.flat().map(Math.abs).filter(Number.isFinite));
  const places = Math.floor(Math.log10(largest));
  return places > 12 ? ".9e" : `.${Math.min(10, 13 - places)}f`;
}

/**
 * The numbers as Python writes them in this format.
 * @type {(values: number[], format: string) => string}
 */
export function digits(values, format) {
  const count = parseInt(format.slice(1), 10);
  return values.map((value) => (format.endsWith("e") ? exponential(value, count) : fixed(value, count))).join(" ");
}

/** @type {(value: number, decimals: number) => string} */
function exponential(value, decimals) {
  if (!Number.isFinite(value)) return fixed(value, decimals);
  const [number, exponent] = value.toExponential(decimals).split("e");
  return `${Object.is(value, -0) ? "-" : ""}${number}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`;
}

/**
 * The line that prints these values in this format.
 * @type {(values: string, format: string) => string}
 */
export const printOf = (values, format) => `print(*(f"{v:${format}}" for v in ${values}))`;

/**
 * Lines that define the parameters, inputs and targets.
 * @type {(state: State, results: { net: RnnNetwork }) => string[]}
 */
export function numbers({ x, targets, labels }, { net }) {
  const target = {
    softmax: `torch.tensor(${python(labels)})`,
    sigmoid: `array(${python(labels.map((label) => [label]))})`,
    linear: `array(${python(targets)})`,
  }[net.head];
  return [
    "import torch",
    "array = lambda values: torch.tensor(values, dtype=torch.float64)",
    `W_hx, b_h = array(${python(net.W_hx)}), array(${python(net.b_h)})`,
    `W_hh = array(${python(net.W_hh)}).requires_grad_()`,
    `W_yh, b_y = array(${python(net.W_yh)}), array(${python(net.b_y)})`,
    `x, target = array(${python(x)}), ${target}`,
  ];
}

/**
 * Lines that start the state and the loop, up to h(t) and z_y(t).
 * @type {(net: RnnNetwork, T: number) => string[]}
 */
export function loop(net, T) {
  return [
    `h = torch.zeros(${net.W_hh.length}, dtype=torch.float64)`,
    `for t in range(${T}):`,
    `    h = ${ACTIVATION[net.activation]}(W_hx @ x[t] + W_hh @ h + b_h)`,
    "    z = W_yh @ h + b_y",
  ];
}

/** @type {(net: RnnNetwork) => string} */
export const activationCode = (net) => ACTIVATION[net.activation];
/** @type {(net: RnnNetwork) => string} */
export const outputCode = (net) => OUTPUT[net.head];
/** @type {(net: RnnNetwork) => string} */
export const lossCode = (net) => LOSS[net.head];
