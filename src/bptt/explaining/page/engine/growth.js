// How a product of Jacobians (lecture line 11) grows or shrinks along time: as it is, number by number in the chosen
// precision, and in powers of ten, where it neither dies nor overflows.
import { binade, divide, identity, matMul, norm, transpose } from "./matrix.js";
import { jacobian } from "./terms.js";
import { svd } from "./svd.js";

// The products that start at k, by one more Jacobian each, rounded as the forward pass was:
// chains[t] = ∂state(t)/∂state(k), t = k..T.
export function chainsFrom(forward, k) {
  const chains = [];
  chains[k] = identity(forward.cell.width);
  for (let t = k + 1; t <= forward.T; t++) chains[t] = matMul(jacobian(forward, t), chains[t - 1], forward.round);
  return chains;
}

// The first t at which every entry of chains[t] is 0, or at which one is infinite or NaN; null if there is none.
export function lost(chains) {
  const died = chains.findIndex((product) => product?.flat().every((value) => value === 0));
  const overflowed = chains.findIndex((product) => product?.flat().some((value) => !Number.isFinite(value)));
  return { died: died < 0 ? null : died, overflowed: overflowed < 0 ? null : overflowed };
}

// SVD of a matrix whose singular values may leave the range of numbers. {U, V, s: log₁₀ of the singular values, −∞ for 0}
export function logSvd(A) {
  if (!A.flat().every(Number.isFinite)) return { U: A, V: A, s: A[0].map(() => norm(A)) };
  const unit = binade(A);
  const { U, s, V } = svd(divide(A, unit));
  return { U, V, s: s.map((value) => Math.log10(value) + Math.log10(unit)) };
}

// For a state of two numbers, at lag l = t − k: {s: log₁₀ of both singular values of ∂state(t)/∂state(k), U, V}. The second
// value is |determinant| / the first: a product rounds it away where it is 10¹⁶ times smaller.
export function growth(forward, k) {
  let product = identity(2);
  let [exponent, determinant] = [0, 0]; // log₁₀
  const lags = [{ s: [0, 0], U: identity(2), V: identity(2) }];
  for (let t = k + 1; t <= forward.T; t++) {
    const J = jacobian(forward, t);
    determinant += Math.log10(Math.abs(J[0][0] * J[1][1] - J[0][1] * J[1][0]));
    [product, exponent] = rescaled(matMul(J, product), exponent);
    const { U, V, s } = logSvd(product);
    const first = s[0] + exponent;
    lags.push({ s: [first, first === -Infinity ? first : Math.min(determinant - first, first)], U, V });
  }
  return lags;
}

// What the last hidden state feels of the earlier ones: reach[l] = log₁₀ σ₁(∂h(T)/∂state(T−l)), l = 0..T−1.
export function reach(forward) {
  let block = identity(forward.cell.width).slice(0, forward.cell.H);
  let exponent = 0;
  const logs = [0];
  for (let i = forward.T; i > 1; i--) {
    [block, exponent] = rescaled(matMul(block, jacobian(forward, i)), exponent);
    logs.push(logSvd(transpose(block)).s[0] + exponent); // fewer columns to turn
  }
  return logs;
}

// The first lag at which logs fall below `share` of 1; null if none does.
export function horizon(logs, share = 0.01) {
  const lag = logs.findIndex((value) => value < Math.log10(share));
  return lag < 0 ? null : lag;
}

function rescaled(A, exponent) {
  const unit = binade(A);
  return [divide(A, unit), exponent + Math.log10(unit)];
}
