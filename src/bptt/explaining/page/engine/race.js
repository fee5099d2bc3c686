// An RNN and an LSTM at their starts, with weights of one size and the same inputs: how far back h(T) still feels the
// state.
import { withForgetBias } from "./lstm.js";
import { identity, zeroMatrix, zeros } from "./matrix.js";
import { run } from "./network.js";
import { generator, orthogonal, uniform } from "./start.js";
/** @import { Forward, LstmNetwork, LstmStep, Matrix, Network, RnnNetwork, StepOf, Vector } from "../types.d.ts" */

/**
 * Three networks at their starts, and their inputs. H: units of each; inputs are uniform in ±size, weights in ±1/√H
 * (as torch.nn draws them).
 * @type {(wanted: { seed: number, H: number, D: number, T: number, size: number, forgetBias: number }) =>
 *   { rnn: RnnNetwork, orthogonal: RnnNetwork, lstm: LstmNetwork, x: Matrix }}
 */
export function racers({ seed, H, D, T, size, forgetBias }) {
  const random = generator(seed);
  const limit = 1 / Math.sqrt(H);
  /** @type {(rows: number, columns: number) => Matrix} */
  const draw = (rows, columns) => uniform(random, rows, columns, limit);
  const x = uniform(random, T, D, size);
  const [W_hx, W_hh, [b_h]] = [draw(H, D), draw(H, H), draw(1, H)];
  const gates = { W_hx: draw(4 * H, D), W_hh: draw(4 * H, H), b_h: draw(1, 4 * H)[0] };
  /** @type {{ head: "linear", counted: "last", W_yh: Matrix, b_y: Vector }} */
  const head = { head: "linear", counted: "last", W_yh: identity(H), b_y: zeros(H) };
  /** @type {RnnNetwork} */
  const rnn = { cell: "rnn", activation: "tanh", W_hx, W_hh, b_h, ...head };
  return {
    rnn,
    orthogonal: { ...rnn, W_hh: orthogonal(W_hh) },
    lstm: { cell: "lstm", ...withForgetBias(gates, forgetBias), ...head },
    x,
  };
}

/** @type {<N extends Network>(net: N, x: Matrix) => Forward<StepOf<N>>} */
export function forwardOf(net, x) {
  return run(net, x, zeroMatrix(x.length, net.b_y.length));
}

/**
 * How far c(T) feels c(T−l) along the c path alone: log₁₀ of the largest over the units of Π f(i), i = T−l+1..T, for l
 * = 0..T−1.
 * @type {(forward: Forward<LstmStep>) => Vector}
 */
export function cellPath({ steps, T }) {
  let logs = steps[T].f.map(() => 0);
  const all = [0];
  for (let i = T; i > 1; i--) {
    logs = logs.map((log, j) => log + Math.log10(steps[i].f[j]));
    all.push(Math.max(...logs));
  }
  return all;
}
