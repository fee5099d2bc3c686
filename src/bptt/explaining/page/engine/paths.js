// The ways from step k to step t through recurrent edges of lag 1 and, with W_hh2, of lag 2 (eq. (9) to (11)). Along
// one way the Jacobians are multiplied; over all ways they are added. Nothing here uses `gradient` of network.js or
// terms.js: the sum over all ways is to check them.
import { add, identity, matMul, scale, times, vecMat } from "./matrix.js";
import { immediate, lossByHidden, parameterOf } from "./network.js";
/** @import { Forward, Matrix, Parameter, RnnNetwork, RnnStep, StepParameter } from "../types.d.ts" */

/**
 * All ways from k to t, each as the steps that it visits, [k, .., t]; lags: 1 or 2.
 * @type {(t: number, k: number, lags: number) => number[][]}
 */
export function paths(t, k, lags) {
  if (t === k) return [[k]];
  /** @type {(lag: number) => number[][]} */
  const through = (lag) => (t - lag >= k ? paths(t - lag, k, lags).map((path) => [...path, t]) : []);
  return lags === 2 ? [...through(1), ...through(2)] : through(1);
}

/**
 * The number of ways from k to t: N(t, k) = N(t−1, k) + N(t−2, k), the Fibonacci numbers; with lag 1 alone just one.
 * @type {(t: number, k: number, lags: number) => number}
 */
export function pathCount(t, k, lags) {
  let [before, now] = [0, 1];
  for (let i = k; i < t; i++) [before, now] = [now, lags === 2 ? now + before : now];
  return now;
}

/**
 * The product of ∂h(j)/∂h(i) = diag(σ_h′(z_h(j))) W over the edges i → j of one way  [H, H]; W is W_hh or W_hh2 by
 * j − i.
 * @type {(net: RnnNetwork, forward: Forward<RnnStep>, path: number[]) => Matrix}
 */
export function pathJacobian(net, { steps, round, cell }, path) {
  let product = identity(cell.H);
  for (let n = 1; n < path.length; n++) {
    const factor = lagMatrix(net, path[n] - path[n - 1]).map((row, i) => scale(row, steps[path[n]].slopes[i], round));
    product = matMul(factor, product, round);
  }
  return product;
}

/**
 * The part of ∂L(t)/∂θ that leaves h(t) and reaches step k along this one way.
 * @type {(net: RnnNetwork, forward: Forward<RnnStep>, path: number[], name: StepParameter) => Parameter}
 */
export function pathTerm(net, forward, path, name) {
  const { steps, round } = forward;
  let dh = lossByHidden(net, forward, path[path.length - 1]);
  for (let n = path.length - 1; n > 0; n--) {
    dh = vecMat(times(steps[path[n]].slopes, dh, round), lagMatrix(net, path[n] - path[n - 1]), round);
  }
  return immediate(forward, path[0], name, times(steps[path[0]].slopes, dh, round));
}

/**
 * ∂L/∂θ as the sum over t, over k, and over the ways between them.
 * @type {(net: RnnNetwork, forward: Forward<RnnStep>, name: StepParameter) => Parameter}
 */
export function sumOverPaths(net, forward, name) {
  let total = scale(parameterOf(net, name), 0);
  for (let t = 1; t <= forward.T; t++) {
    for (let k = 1; k <= t; k++) {
      for (const path of paths(t, k, net.W_hh2 ? 2 : 1))
        total = add(total, pathTerm(net, forward, path, name), forward.round);
    }
  }
  return total;
}

/**
 * The matrix on the edges of this lag.
 * @type {(net: RnnNetwork, lag: number) => Matrix}
 */
const lagMatrix = (net, lag) => /** @type {Matrix} */ (lag === 1 ? net.W_hh : net.W_hh2);
