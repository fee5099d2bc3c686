// One step of an LSTM and its derivative; the state is (h, c), the gates stand in torch.nn.LSTM's order i, f, g, o:
//   a = W_hx x(t) + W_hh h(t−1) + b_h [+ b_hh]                 [4H]
//   i = σ(a_i)  f = σ(a_f)  g = tanh(a_g)  o = σ(a_o)          [H] each
//   c(t) = f ∘ c(t−1) + i ∘ g      h(t) = o ∘ tanh c(t)
import { sigmoid } from "./activations.js";
import { add, matVec, vecMat, zeros } from "./matrix.js";
/** @import { Cell, LstmStep, Rounding, StepParameters, Vector } from "../types.d.ts" */

/** @type {(parameters: StepParameters) => Cell<LstmStep>} */
export function lstm({ W_hx, W_hh, b_h, b_hh }) {
  const H = W_hh[0].length;
  /** @type {(vector: Vector, n: number) => Vector} */
  const part = (vector, n) => vector.slice(n * H, (n + 1) * H);

  return {
    H,
    width: 2 * H,

    step(x, before, round) {
      /** @type {(vector: Vector, f: (value: number, j: number) => number) => Vector} */
      const map = (vector, f) => vector.map((value, j) => round(f(value, j)));
      let z = add(matVec(W_hx, x, round), matVec(W_hh, part(before, 0), round), round);
      z = add(z, b_h, round);
      if (b_hh) z = add(z, b_hh, round);
      const [i, f, o] = [0, 1, 3].map((n) => map(part(z, n), sigmoid));
      const g = map(part(z, 2), Math.tanh);
      const c = f.map((forget, j) => round(round(forget * before[H + j]) + round(i[j] * g[j])));
      const tanhC = map(c, Math.tanh);
      const h = map(o, (value, j) => value * tanhC[j]);
      return { x, before, z, i, f, g, o, c, tanhC, h, state: [...h, ...c] };
    },

    atNet(step, dState, round) {
      const { i, f, g, o, tanhC, before } = step;
      const dc = throughCell(step, dState, round);
      return [
        ...dc.map((d, j) => round(d * round(g[j] * i[j] * (1 - i[j])))),
        ...dc.map((d, j) => round(d * round(before[H + j] * f[j] * (1 - f[j])))),
        ...dc.map((d, j) => round(d * round(i[j] * (1 - g[j] * g[j])))),
        ...o.map((gate, j) => round(dState[j] * round(tanhC[j] * gate * (1 - gate)))),
      ];
    },

    atBefore(step, dNet, dState, round) {
      const dc = throughCell(step, dState, round).map((d, j) => round(d * step.f[j]));
      return [...vecMat(dNet, W_hh, round), ...dc];
    },

    inputs: (step) => ({ W_hx: step.x, W_hh: part(step.before, 0), b_h: null, ...(b_hh && { b_hh: null }) }),

    start: () => zeros(2 * H),
  };

  /**
   * The gradient at c(t): its own, and what reaches it from h(t) through tanh.
   * @type {(step: LstmStep, dState: Vector, round: Rounding) => Vector}
   */
  function throughCell({ o, tanhC }, dState, round) {
    return o.map((gate, j) => round(dState[H + j] + round(dState[j] * round(gate * (1 - tanhC[j] ** 2)))));
  }
}

/**
 * The parameters with every forget gate's bias b_h set to `value` (and b_hh's to 0, so that this is the sum).
 * @type {(parameters: StepParameters, value: number) => StepParameters}
 */
export function withForgetBias(parameters, value) {
  const H = parameters.W_hh[0].length;
  /** @type {(bias: Vector, to: number) => Vector} */
  const set = (bias, to) => bias.map((b, i) => (i >= H && i < 2 * H ? to : b));
  const { b_h, b_hh } = parameters;
  return { ...parameters, b_h: set(b_h, value), ...(b_hh && { b_hh: set(b_hh, 0) }) };
}
