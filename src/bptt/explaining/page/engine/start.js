// Where training starts: weights drawn from a seed, and an orthogonal matrix made of a drawn one.
import { dot, norm, scale, subtract, transpose } from "./matrix.js";
/** @import { Matrix, Vector } from "../types.d.ts" */

/**
 * Numbers in [0, 1) that depend on the seed alone: the 32-bit mixer of T. Mueller, a step of the golden ratio
 * apart.
 * @type {(seed: number) => () => number}
 */
export function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let mixed = state;
    for (const _ of [0, 1]) mixed = Math.imul((mixed >>> 16) ^ mixed, 0x45d9f3b);
    return (((mixed >>> 16) ^ mixed) >>> 0) / 2 ** 32;
  };
}

/**
 * A matrix with entries uniform in ±limit, to three decimals, so that they can be written down.
 * @type {(random: () => number, rows: number, columns: number, limit: number) => Matrix}
 */
export function uniform(random, rows, columns, limit) {
  const one = () => Number((limit * (2 * random() - 1)).toFixed(3));
  return Array.from({ length: rows }, () => Array.from({ length: columns }, one));
}

/**
 * The Q of A = Q R with positive diagonal of R (as torch.nn.init.orthogonal_ makes it): Gram and Schmidt, each
 * column made orthogonal twice, because once loses digits. A must have full rank.
 * @type {(A: Matrix) => Matrix}
 */
export function orthogonal(A) {
  /** @type {Vector[]} */
  const done = [];
  for (const column of transpose(A)) {
    let rest = column;
    for (const q of [...done, ...done]) rest = subtract(rest, scale(q, dot(q, rest)));
    done.push(scale(rest, 1 / norm(rest)));
  }
  return transpose(done);
}
