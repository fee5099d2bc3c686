// The network that all scenes share: its fields in the state, and what the engine makes of them.
import { ACTIVATIONS } from "../engine/activations.js";
import { HEADS } from "../engine/heads.js";
import { gradient, run } from "../engine/network.js";
import { terms } from "../engine/terms.js";
import { keptFor } from "./kept.js";
import { choice, integer, matrix, namesOf, vector } from "./fields.js";
/** @import { Matrix, Parameter, Results, RnnNetwork, SharedState, Target, Vector } from "../types.d.ts" */

export const MAX_T = 6; // copies that can be drawn side by side on a phone

export const FIELDS = {
  W_hx: matrix([
    [0.5, -0.3],
    [0.8, 0.2],
  ]), // [H, D]
  W_hh: matrix([
    [0.9, -0.4],
    [0.3, 0.6],
  ]), // [H, H]
  W_yh: matrix([
    [1.2, -0.7],
    [-0.5, 0.9],
  ]), // [K, H]; the sigmoid head uses the first row
  b_h: vector([0.1, -0.1]),
  b_y: vector([0, 0.1]),
  x: matrix([
    [1, 0],
    [0, 1],
    [1, 1],
    [0.5, -1],
  ]), // [T, D]
  labels: vector([0, 1, 1, 0]), // targets of softmax and sigmoid, 0 or 1
  targets: matrix([
    [1, 0],
    [0, 1],
    [0.5, 0.5],
    [-1, 0],
  ]), // targets of the linear head [T, K]
  activation: choice("tanh", namesOf(ACTIVATIONS)),
  head: choice("softmax", namesOf(HEADS)),
  counted: choice("each", ["each", "last"]), // which L(t) are in the sum
  t: integer(4, { min: 1, max: MAX_T }), // the loss step
  k: integer(2, { min: 1, max: MAX_T }), // the earlier step, k ≤ t
};

/**
 * Whether the shapes fit together and (t, k) is a pair of steps.
 * @type {(state: SharedState) => boolean}
 */
export function consistent({ W_hx, W_hh, W_yh, b_h, b_y, x, labels, targets, t, k }) {
  /** @type {(A: Matrix, rows: number, columns: number) => boolean} */
  const shaped = (A, rows, columns) => A.length === rows && A[0].length === columns;
  const T = x.length;
  return (
    shaped(W_hx, 2, 2) &&
    shaped(W_hh, 2, 2) &&
    shaped(W_yh, 2, 2) &&
    b_h.length === 2 &&
    b_y.length === 2 &&
    T <= MAX_T &&
    shaped(x, T, 2) &&
    shaped(targets, T, 2) &&
    labels.length === T &&
    labels.every((label) => label === 0 || label === 1) &&
    k <= t &&
    t <= T
  );
}

/**
 * The network in the engine's form.
 * @type {(state: SharedState) => RnnNetwork}
 */
export function network({ W_hx, W_hh, W_yh, b_h, b_y, activation, head, counted }) {
  const K = head === "sigmoid" ? 1 : W_yh.length;
  return { cell: "rnn", activation, head, counted, W_hx, W_hh, b_h, W_yh: W_yh.slice(0, K), b_y: b_y.slice(0, K) };
}

/**
 * The targets of the head that is chosen.
 * @type {(state: SharedState) => Target[]}
 */
export function targetsOf({ head, targets, labels }) {
  return head === "linear" ? targets : labels;
}

/**
 * What the engine makes of a state.
 * @type {(state: SharedState) => Results}
 */
export const results = keptFor((state) => {
  const net = network(state);
  const forward = run(net, state.x, targetsOf(state));
  const [byWalk, byTerm] = [once(() => gradient(net, forward)), once(() => terms(net, forward))];
  return {
    net,
    forward,
    get gradient() {
      return byWalk();
    },
    get terms() {
      return byTerm();
    },
  };
});

/**
 * A function that calls make() when first called, and gives the same result ever after.
 * @type {<T>(make: () => T) => () => T}
 */
function once(make) {
  /** @type {any} */
  let value;
  return () => (value ??= make());
}

/**
 * The patch that makes the sequence T steps long; new steps repeat the initial sequence.
 * @type {(state: SharedState, T: number) => Pick<SharedState, "x" | "labels" | "targets" | "t" | "k">}
 */
export function withSteps({ x, labels, targets, t, k }, T) {
  /** @type {<T>(rows: T[], initial: T[]) => T[]} */
  const fit = (rows, initial) => Array.from({ length: T }, (_, i) => rows[i] ?? initial[i % initial.length]);
  return {
    x: fit(x, FIELDS.x.initial),
    labels: fit(labels, FIELDS.labels.initial),
    targets: fit(targets, FIELDS.targets.initial),
    t: Math.min(t, T),
    k: Math.min(k, t, T),
  };
}

/**
 * A copy of a vector or matrix with one entry replaced: at = [i] or [i, j].
 * @type {<P extends Parameter>(values: P, path: number[], value: number) => P}
 */
export function replaced(values, [i, ...rest], value) {
  return /** @type {any} */ (
    values.map((old, n) => (n === i ? (rest.length ? replaced(/** @type {Vector} */ (old), rest, value) : value) : old))
  );
}
