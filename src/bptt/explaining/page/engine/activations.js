// σ_h, eq. (6): its value at z, and its slope from z and h = σ_h(z).

/** @import { Activation, ActivationName } from "../types.d.ts" */

/** @type {(z: number) => number} */
export function sigmoid(z) {
  return z >= 0 ? 1 / (1 + Math.exp(-z)) : Math.exp(z) / (1 + Math.exp(z));
}

/** @type {Record<ActivationName, Activation>} */
export const ACTIVATIONS = {
  tanh: { value: Math.tanh, slope: (z, h) => 1 - h * h },
  sigmoid: { value: sigmoid, slope: (z, h) => h * (1 - h) },
  relu: { value: (z) => (z > 0 ? z : z === z ? 0 : z), slope: (z) => (z > 0 ? 1 : 0) }, // z !== z: NaN stays NaN
};
