// The network forward, and its gradient by backpropagation through time.
//
// A network is a plain object, `Network` in types.d.ts. Everything is indexed by the lecture's t = 1..T; entry 0 is the
// start h(0), or empty. Only x and targets start at 0.
import { elman } from "./elman.js";
import { HEADS } from "./heads.js";
import { lstm } from "./lstm.js";
import { add, float64, matVec, outer, scale, vecMat, zeros } from "./matrix.js";
/**
 * @import {
 *   Cell, Forward, Gradient, Head, Matrix, Network, Parameter, Rounding, StepOf, StepParameter, Target, Vector
 * } from "../types.d.ts"
 */

const nothing = /** @type {any} */ (null); // entry 0 of what counts from 1

/** @type {(net: Network) => Head} */
export const headOf = (net) => HEADS[net.head];

/**
 * The parameter, or its gradient, of this name; it must be there.
 * @type {(net: Network | Gradient, name: StepParameter | "W_yh" | "b_y") => Parameter}
 */
export const parameterOf = (net, name) => /** @type {Parameter} */ (net[name]);

/** @type {(net: Network) => Cell<any>} */
export function cellOf(net) {
  return net.cell === "lstm" ? lstm(net) : elman(net);
}

/**
 * The forward pass with its losses. state0: h(0) (and c(0)), 0 by default.
 * @type {<N extends Network>(net: N, x: Matrix, targets: Target[], options?: { round?: Rounding, state0?: Vector })
 *   => Forward<StepOf<N>>}
 */
export function run(net, x, targets, { round = float64, state0 } = {}) {
  const cell = cellOf(net);
  const head = headOf(net);
  const T = x.length;
  const start = state0 ?? cell.start();
  const steps = [/** @type {any} */ ({ state: start, h: start.slice(0, cell.H) })];
  const outputs = [nothing];
  const losses = [0];
  const counts = [false];
  let loss = 0;
  for (let t = 1; t <= T; t++) {
    steps.push(cell.step(x[t - 1], steps[t - 1].state, round));
    const z = add(matVec(net.W_yh, steps[t].h, round), net.b_y, round);
    outputs.push({ z, y: head.output(z).map(round) });
    losses.push(round(head.loss(z, targets[t - 1])));
    counts.push(net.counted !== "last" || t === T);
    if (counts[t]) loss = round(loss + losses[t]);
  }
  return { T, cell, steps, outputs, losses, counts, loss, targets: [nothing, ...targets], round };
}

/**
 * ∂L(t)/∂z_y(t)  [K]; 0 where L(t) does not count.
 * @type {(net: Network, forward: Forward, t: number) => Vector}
 */
export function lossByOutputNet(net, { outputs, counts, targets, round }, t) {
  const gradient = headOf(net).lossByZ(outputs[t].z, targets[t]).map(round);
  return counts[t] ? gradient : zeros(gradient.length);
}

/**
 * ∂L(t)/∂h(t) = ∂L(t)/∂y(t) · ∂y(t)/∂h(t)  [H]; 0 where L(t) does not count.
 * @type {(net: Network, forward: Forward, t: number) => Vector}
 */
export function lossByHidden(net, forward, t) {
  return vecMat(lossByOutputNet(net, forward, t), net.W_yh, forward.round);
}

/**
 * ∂L(t)/∂state(t): that of h(t), then zeros for what else the state holds.
 * @type {(net: Network, forward: Forward, t: number) => Vector}
 */
export function lossByState(net, forward, t) {
  const { H, width } = forward.cell;
  return [...lossByHidden(net, forward, t), ...zeros(width - H)];
}

/**
 * The immediate gradient ∂⁺L/∂θ of one parameter at step k, from the gradient at its net input.
 * @type {(forward: Forward, k: number, name: StepParameter, dNet: Vector) => Parameter}
 */
export function immediate(forward, k, name, dNet) {
  const input = forward.cell.inputs(forward.steps[k])[name];
  return input ? outer(dNet, input, forward.round) : dNet;
}

/**
 * ∂L/∂θ of every parameter by backpropagation through time: one walk back, T steps.
 * @type {(net: Network, forward: Forward) => Gradient}
 */
export function gradient(net, forward) {
  const { cell, steps, round, T } = forward;
  const names = /** @type {StepParameter[]} */ (Object.keys(cell.inputs(steps[1])));
  const total = Object.fromEntries(
    /** @type {const} */ ([...names, "W_yh", "b_y"]).map((name) => [name, scale(parameterOf(net, name), 0)]),
  );
  /** @type {Vector[]} */
  const state = [];
  let dState = zeros(cell.width);
  for (let t = T; t >= 1; t--) {
    const dOutput = lossByOutputNet(net, forward, t);
    total.W_yh = add(total.W_yh, outer(dOutput, steps[t].h, round), round);
    total.b_y = add(total.b_y, dOutput, round);
    dState = add(dState, lossByState(net, forward, t), round);
    state[t] = dState;
    const dNet = cell.atNet(steps[t], dState, round);
    for (const name of names) total[name] = add(total[name], immediate(forward, t, name, dNet), round);
    dState = cell.atBefore(steps[t], dNet, dState, round);
  }
  state[0] = dState;
  return /** @type {any} */ ({ ...total, state });
}
