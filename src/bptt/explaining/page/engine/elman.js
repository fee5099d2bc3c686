// One step of the lecture's network, eq. (5) and (6), and its derivative. With W_hh2 the recurrence has a second lag,
// as in Werbos 1990, and the state is (h(t), h(t−1)):
//   z_h(t) = W_hx x(t) + W_hh h(t−1) [+ W_hh2 h(t−2)] + b_h,   h(t) = σ_h(z_h(t))
import { ACTIVATIONS } from "./activations.js";
import { add, matVec, times, vecMat, zeros } from "./matrix.js";
/** @import { ActivationName, Cell, RnnStep, StepParameters } from "../types.d.ts" */

/** @type {(net: StepParameters & { activation: ActivationName }) => Cell<RnnStep>} */
export function elman({ activation, W_hx, W_hh, W_hh2, b_h }) {
  const { value, slope } = ACTIVATIONS[activation];
  const H = W_hh.length;

  return {
    H,
    width: W_hh2 ? 2 * H : H, // of the state

    step(x, before, round) {
      let z = add(matVec(W_hx, x, round), matVec(W_hh, before.slice(0, H), round), round);
      if (W_hh2) z = add(z, matVec(W_hh2, before.slice(H), round), round);
      z = add(z, b_h, round);
      const h = z.map((a) => round(value(a)));
      const slopes = z.map((a, i) => round(slope(a, h[i])));
      return { x, before, z, h, slopes, state: W_hh2 ? [...h, ...before.slice(0, H)] : h };
    },

    atNet: (step, dState, round) => times(step.slopes, dState.slice(0, H), round),

    atBefore(step, dNet, dState, round) {
      const dh = vecMat(dNet, W_hh, round);
      return W_hh2 ? [...add(dh, dState.slice(H), round), ...vecMat(dNet, W_hh2, round)] : dh;
    },

    inputs(step) {
      const both = { W_hx: step.x, W_hh: step.before.slice(0, H), b_h: null };
      return W_hh2 ? { ...both, W_hh2: step.before.slice(H) } : both;
    },

    start: () => zeros(W_hh2 ? 2 * H : H),
  };
}
