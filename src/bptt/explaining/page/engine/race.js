// An RNN and an LSTM at their starts, with weights of one size and the same inputs: how far back h(T) still feels the state.
import { withForgetBias } from "./lstm.js";
import { identity, zeros } from "./matrix.js";
import { run } from "./network.js";
import { generator, orthogonal, uniform } from "./start.js";

// H: units of each; inputs uniform in ±size, weights in ±1/√H (as torch.nn draws them).
// {rnn, orthogonal, lstm, x}: networks of the engine.
export function racers({ seed, H, D, T, size, forgetBias }) {
  const random = generator(seed);
  const limit = 1 / Math.sqrt(H);
  const draw = (rows, columns) => uniform(random, rows, columns, limit);
  const x = uniform(random, T, D, size);
  const [W_hx, W_hh, [b_h]] = [draw(H, D), draw(H, H), draw(1, H)];
  const gates = { W_hx: draw(4 * H, D), W_hh: draw(4 * H, H), b_h: draw(1, 4 * H)[0] };
  const head = { head: "linear", counted: "last", W_yh: identity(H), b_y: zeros(H) };
  const rnn = { cell: "rnn", activation: "tanh", W_hx, W_hh, b_h, ...head };
  return {
    rnn,
    orthogonal: { ...rnn, W_hh: orthogonal(W_hh) },
    lstm: { cell: "lstm", ...withForgetBias(gates, forgetBias), ...head },
    x,
  };
}

export const forwardOf = (net, x) => run(net, x, zeros(x.length, net.b_y.length));

// The c path alone, from c(T−l) to c(T): log₁₀ of the largest over the units of Π f(i), i = T−l+1..T; l = 0..T−1.
export function cellPath({ steps, T }) {
  let logs = steps[T].f.map(() => 0);
  const all = [0];
  for (let i = T; i > 1; i--) {
    logs = logs.map((log, j) => log + Math.log10(steps[i].f[j]));
    all.push(Math.max(...logs));
  }
  return all;
}
