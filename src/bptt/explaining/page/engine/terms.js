// The terms of eq. (10), one for each pair (t, k), and the products of Jacobians of eq. (11). Nothing here
// uses `gradient` of network.js: the sum of all terms is to check it.
import { add, eachEntry, identity, matMul, norm, subtract, zeros } from "./matrix.js";
import { headOf, immediate, lossByState } from "./network.js";
/**
 * @import {
 *   Forward, FromOne, Matrix, Network, Parameter, RnnNetwork, RnnStep, StepParameter, Sums, Terms, Vector
 * } from "../types.d.ts"
 */

/**
 * terms[t][k], 1 ≤ k ≤ t ≤ T: the part of ∂L(t)/∂θ that passes through step k; θ is W_hh unless another name is
 * given. ∂L(t)/∂W_hh = Σ_k terms[t][k]. Work: T² / 2 steps back.
 * @type {(net: Network, forward: Forward, name?: StepParameter) => Terms<any>}
 */
export function terms(net, forward, name = "W_hh") {
  const all = /** @type {any[][]} */ ([[]]);
  for (let t = 1; t <= forward.T; t++) {
    all.push([null]);
    walkBack(net, forward, t, (k, dNet) => (all[t][k] = immediate(forward, k, name, dNet)));
  }
  return all;
}

/**
 * Calls visit(k, ∂L(t)/∂z_h(k), ∂L(t)/∂state(k)) for k = t, t−1, .., 1.
 * @type {(net: Network, forward: Forward, t: number, visit: (k: number, dNet: Vector, dState: Vector) => void) =>
 *   void}
 */
export function walkBack(net, forward, t, visit) {
  const { cell, steps, round } = forward;
  let dState = lossByState(net, forward, t);
  for (let k = t; k >= 1; k--) {
    const dNet = cell.atNet(steps[k], dState, round);
    visit(k, dNet, dState);
    dState = cell.atBefore(steps[k], dNet, dState, round);
  }
}

/**
 * Sums of terms: rows[t] over k = ∂L(t)/∂θ, columns[k] over t, lags[l] over t − k = l, and the total.
 * @type {<P extends Parameter>(all: Terms<P>) => Sums<P>}
 */
export function sums(all) {
  const T = all.length - 1;
  const zero = eachEntry(all[1][1], () => 0);
  /** @type {(from: number, length: number) => any[]} */
  const collect = (from, length) => Array.from({ length }, (_, i) => (i < from ? null : zero));
  const rows = collect(1, T + 1);
  const columns = collect(1, T + 1);
  const lags = collect(0, T);
  let total = zero;
  for (let t = 1; t <= T; t++) {
    for (let k = 1; k <= t; k++) {
      rows[t] = add(rows[t], all[t][k]);
      columns[k] = add(columns[k], all[t][k]);
      lags[t - k] = add(lags[t - k], all[t][k]);
    }
    total = add(total, rows[t]);
  }
  return { rows, columns, lags, total };
}

/**
 * ‖terms[t][k]‖, for the map.
 * @type {(all: Terms<any>) => FromOne<FromOne<number>>}
 */
export function termNorms(all) {
  return all.map((row) => row.map((term) => /** @type {any} */ (term ? norm(term) : null)));
}

/**
 * ∂state(i)/∂state(i−1): row r is one step back from the unit vector e_r. For the RNN diag(σ_h′) W_hh.
 * @type {(forward: Forward, i: number) => Matrix}
 */
export function jacobian(forward, i) {
  const { cell, steps, round } = forward;
  return identity(cell.width).map((e) => cell.atBefore(steps[i], cell.atNet(steps[i], e, round), e, round));
}

/**
 * ∂state(t)/∂state(k) = Π_{i=k+1..t} ∂state(i)/∂state(i−1), 0 ≤ k ≤ t, eq. (11); for the RNN ∂h(t)/∂h(k).
 * @type {(forward: Forward, t: number, k: number) => Matrix}
 */
export function chain(forward, t, k) {
  let product = identity(forward.cell.width);
  for (let i = t; i > k; i--) product = matMul(product, jacobian(forward, i), forward.round);
  return product;
}

/**
 * All products that end at t, chains[k] = ∂state(t)/∂state(k) for k = 0..t; each is the next one times one more
 * Jacobian.
 * @type {(forward: Forward, t: number) => Matrix[]}
 */
export function chainsTo(forward, t) {
  /** @type {Matrix[]} */
  const chains = [];
  chains[t] = identity(forward.cell.width);
  for (let k = t - 1; k >= 0; k--) chains[k] = matMul(chains[k + 1], jacobian(forward, k + 1), forward.round);
  return chains;
}

/**
 * The factors of eq. (10) for one (t, k) of an RNN, each as it stands there: lossByY ∂L(t)/∂y(t) [K], yByH
 * ∂y(t)/∂h(t) [K, H], hByH ∂h(t)/∂h(k) [H, H], and the immediate derivative ∂⁺h(k)/∂W_hh, whose entry [i][i, j] is
 * slopes[i] · before[j] and 0 elsewhere. Where y(t) has rounded to 0 or 1, lossByY is infinite and the product
 * NaN; terms goes over ∂L(t)/∂z_y and has no such trouble.
 * @type {(net: RnnNetwork, forward: Forward<RnnStep>, t: number, k: number) =>
 *   { lossByY: Vector, yByH: Matrix, hByH: Matrix, slopes: Vector, before: Vector }}
 */
export function factors(net, forward, t, k) {
  const { outputs, steps, targets, counts, cell, round } = forward;
  const head = headOf(net);
  const lossByY = head.lossByY(outputs[t].y, targets[t]).map(round);
  const block = chain(forward, t, k).slice(0, cell.H);
  return {
    lossByY: counts[t] ? lossByY : zeros(lossByY.length),
    yByH: matMul(head.outputByZ(outputs[t].z), net.W_yh, round),
    hByH: block.map((row) => row.slice(0, cell.H)),
    slopes: steps[k].slopes,
    before: steps[k].before.slice(0, cell.H),
  };
}

/**
 * How far a sum of terms is from a gradient: the largest difference of two entries, as a share of the largest
 * term, given the terms' norms; what rounding leaves grows with them. 0 where all terms are 0.
 * @type {(total: Parameter, gradient: Parameter, norms: FromOne<FromOne<number>>) => number}
 */
export function distance(total, gradient, norms) {
  const largest = Math.max(...norms.flat().filter((size) => size !== null));
  const apart = Math.max(...subtract(total, gradient).flat().map(Math.abs));
  return apart === 0 ? 0 : apart / largest;
}
