// Lines of torch code for the shared network, for `scene.pytorch`. `prints` is text that must come out to the last digit.

const ACTIVATION = { tanh: "torch.tanh", sigmoid: "torch.sigmoid", relu: "torch.relu" };
const OUTPUT = { softmax: "z.softmax(0)", sigmoid: "z.sigmoid()", linear: "z" };
const LOSS = {
  softmax: "torch.nn.functional.cross_entropy(z, target[t])",
  sigmoid: "torch.nn.functional.binary_cross_entropy_with_logits(z, target[t])",
  linear: "((z - target[t]) ** 2).sum()",
};

// A number, vector or matrix as Python writes it.
export function python(value) {
  return Array.isArray(value) ? `[${value.map(python).join(", ")}]` : String(value);
}

// A number with so many decimals as Python writes it: a negative zero keeps its sign.
export function fixed(value, decimals) {
  if (!Number.isFinite(value)) return { NaN: "nan", Infinity: "inf", "-Infinity": "-inf" }[value];
  return `${Object.is(value, -0) ? "-" : ""}${value.toFixed(decimals)}`;
}

// Python's format of numbers of such sizes in which each digit is certain: ten decimals, fewer where they are large.
export function formatOf(...rows) {
  const largest = Math.max(1, ...rows.flat().map(Math.abs).filter(Number.isFinite));
  const places = Math.floor(Math.log10(largest));
  return places > 12 ? ".9e" : `.${Math.min(10, 13 - places)}f`;
}

// The numbers as Python writes them in this format.
export function digits(values, format) {
  const count = parseInt(format.slice(1), 10);
  return values.map((value) => (format.endsWith("e") ? exponential(value, count) : fixed(value, count))).join(" ");
}

function exponential(value, decimals) {
  if (!Number.isFinite(value)) return fixed(value, decimals);
  const [number, exponent] = value.toExponential(decimals).split("e");
  return `${Object.is(value, -0) ? "-" : ""}${number}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`;
}

export const PRINT = (values, format) => `print(*(f"{v:${format}}" for v in ${values}))`;

// The parameters, inputs and targets.
export function numbers({ x, targets, labels }, { net }) {
  const target = { softmax: `torch.tensor(${python(labels)})`, linear: `array(${python(targets)})` }[net.head];
  return [
    "import torch",
    "array = lambda values: torch.tensor(values, dtype=torch.float64)",
    `W_hx, b_h = array(${python(net.W_hx)}), array(${python(net.b_h)})`,
    `W_hh = array(${python(net.W_hh)}).requires_grad_()`,
    `W_yh, b_y = array(${python(net.W_yh)}), array(${python(net.b_y)})`,
    `x, target = array(${python(x)}), ${target ?? `array(${python(labels.map((label) => [label]))})`}`,
  ];
}

// The start and the loop's first lines: h(t) and z_y(t).
export function loop(net, T) {
  return [
    `h = torch.zeros(${net.W_hh.length}, dtype=torch.float64)`,
    `for t in range(${T}):`,
    `    h = ${ACTIVATION[net.activation]}(W_hx @ x[t] + W_hh @ h + b_h)`,
    "    z = W_yh @ h + b_y",
  ];
}

export const activationCode = (net) => ACTIVATION[net.activation];
export const outputCode = (net) => OUTPUT[net.head];
export const lossCode = (net) => LOSS[net.head];
