// How a product of Jacobians (eq. (11)) grows or shrinks along time: as it is, number by number in the chosen
// precision, and in powers of ten, where it neither dies nor overflows.
import { binade, divide, identity, matMul, norm, transpose } from "./matrix.js";
import { jacobian } from "./terms.js";
import { svd } from "./svd.js";
/** @import { Decomposition, Forward, FromOne, Matrix, Vector } from "../types.d.ts" */

/**
 * The products that start at k, chains[t] = ∂state(t)/∂state(k) for t = k..T, rounded as the forward pass was.
 * Each is the one before times one more Jacobian.
 * @type {(forward: Forward, k: number) => FromOne<Matrix>}
 */
export function chainsFrom(forward, k) {
  /** @type {FromOne<Matrix>} */
  const chains = [];
  chains[k] = identity(forward.cell.width);
  for (let t = k + 1; t <= forward.T; t++) chains[t] = matMul(jacobian(forward, t), chains[t - 1], forward.round);
  return chains;
}

/**
 * The first t at which every entry of chains[t] is 0, or at which one is infinite or NaN; null if there is none.
 * @type {(chains: FromOne<Matrix>) => { died: number | null, overflowed: number | null }}
 */
export function outOfRange(chains) {
  return {
    died: firstOf(chains, (entries) => entries.every((value) => value === 0)),
    overflowed: firstOf(chains, (entries) => entries.some((value) => !Number.isFinite(value))),
  };
}

/**
 * The first t whose product has entries of this kind; null if there is none.
 * @type {(chains: FromOne<Matrix>, kind: (entries: Vector) => boolean) => number | null}
 */
function firstOf(chains, kind) {
  const t = chains.findIndex((product) => product && kind(product.flat()));
  return t < 0 ? null : t;
}

/**
 * SVD of a matrix whose singular values may leave the range of numbers: s holds their log₁₀, −∞ for 0.
 * @type {(A: Matrix) => Decomposition}
 */
export function logSvd(A) {
  if (!A.flat().every(Number.isFinite)) return { U: A, V: A, s: A[0].map(() => norm(A)) };
  const unit = binade(A);
  const { U, s, V } = svd(divide(A, unit));
  return { U, V, s: s.map((value) => Math.log10(value) + Math.log10(unit)) };
}

/**
 * For a state of two numbers, at each lag l = t − k, the decomposition of ∂state(t)/∂state(k) with log₁₀ of its
 * two singular values. The second value is |determinant| / the first: a product rounds it away where it is 10¹⁶
 * times smaller.
 * @type {(forward: Forward, k: number) => Decomposition[]}
 */
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

/**
 * What the last hidden state feels of the earlier ones: reach[l] = log₁₀ σ₁(∂h(T)/∂state(T−l)), l = 0..T−1.
 * @type {(forward: Forward) => Vector}
 */
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

/**
 * The first lag at which logs fall below `share` of 1; null if none does.
 * @type {(logs: Vector, share?: number) => number | null}
 */
export function horizon(logs, share = 0.01) {
  const lag = logs.findIndex((value) => value < Math.log10(share));
  return lag < 0 ? null : lag;
}

/**
 * A divided by a power of two near its largest entry, and `exponent` plus log₁₀ of that power.
 * @type {(A: Matrix, exponent: number) => [Matrix, number]}
 */
function rescaled(A, exponent) {
  const unit = binade(A);
  return [divide(A, unit), exponent + Math.log10(unit)];
}
