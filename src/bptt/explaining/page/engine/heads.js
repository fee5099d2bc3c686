// σ_y with the loss that belongs to it, eq. (7) and (8); the heads of bptt.network.
import { sigmoid } from "./activations.js";
/** @import { Head, Matrix, Vector } from "../types.d.ts" */

/** @type {(z: Vector) => Vector} */
function softmax(z) {
  const largest = Math.max(...z);
  const powers = z.map((value) => Math.exp(value - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/** @type {(z: Vector) => number} */
function logSumExp(z) {
  const largest = Math.max(...z);
  return largest + Math.log(z.reduce((sum, value) => sum + Math.exp(value - largest), 0));
}

/** @type {(values: Vector) => Matrix} */
function diagonal(values) {
  return values.map((value, i) => values.map((_, j) => (i === j ? value : 0)));
}

/** @type {{ softmax: Head<number>, sigmoid: Head<number>, linear: Head<Vector> }} */
export const HEADS = {
  // Classes: target is the index of one; L(t) = −ln y[target].
  softmax: {
    output: softmax,
    loss: (z, target) => logSumExp(z) - z[target],
    lossByZ: (z, target) => softmax(z).map((y, i) => y - (i === target ? 1 : 0)),
    lossByY: (y, target) => y.map((value, i) => (i === target ? -1 / value : 0)),
    outputByZ: (z) => softmax(z).map((a, i, y) => y.map((b, j) => a * ((i === j ? 1 : 0) - b))),
  },
  // One binary label: target is 0 or 1; L(t) = −ln of that label's probability.
  sigmoid: {
    output: (z) => z.map(sigmoid),
    loss: ([z], target) => Math.max(z, 0) - z * target + Math.log1p(Math.exp(-Math.abs(z))),
    lossByZ: ([z], target) => [sigmoid(z) - target],
    lossByY: ([y], target) => [target ? -1 / y : 1 / (1 - y)],
    outputByZ: (z) => diagonal(z.map((value) => sigmoid(value) * (1 - sigmoid(value)))),
  },
  // Regression: target is a vector; L(t) = Σ_k (y_k − target_k)².
  linear: {
    output: (z) => [...z],
    loss: (z, target) => z.reduce((sum, value, i) => sum + (value - target[i]) ** 2, 0),
    lossByZ: (z, target) => z.map((value, i) => 2 * (value - target[i])),
    lossByY: (y, target) => y.map((value, i) => 2 * (value - target[i])),
    outputByZ: (z) => diagonal(z.map(() => 1)),
  },
};
