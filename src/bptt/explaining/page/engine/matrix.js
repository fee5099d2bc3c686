// Vectors and small matrices as plain arrays. `round` is float64 (the identity) or float32: it follows every operation.

/** @import { Matrix, Parameter, Rounding, Vector } from "../types.d.ts" */

/** @type {Rounding} */
export const float64 = (value) => value;
/** @type {Rounding} */
export const float32 = Math.fround;

/** @type {(n: number) => Vector} */
export function zeros(n) {
  return new Array(n).fill(0);
}

/** @type {(rows: number, columns: number) => Matrix} */
export function zeroMatrix(rows, columns) {
  return Array.from({ length: rows }, () => zeros(columns));
}

/** @type {(n: number) => Matrix} */
export function identity(n) {
  return zeroMatrix(n, n).map((row, i) => row.map((_, j) => (i === j ? 1 : 0)));
}

/** @type {(A: Matrix) => Matrix} */
export function transpose(A) {
  return A[0].map((_, j) => A.map((row) => row[j]));
}

/**
 * u · v, summed from left to right.
 * @type {(u: Vector, v: Vector, round?: Rounding) => number}
 */
export function dot(u, v, round = float64) {
  let sum = 0;
  for (let i = 0; i < u.length; i++) sum = round(sum + round(u[i] * v[i]));
  return sum;
}

/**
 * A v   [rows]
 * @type {(A: Matrix, v: Vector, round?: Rounding) => Vector}
 */
export function matVec(A, v, round = float64) {
  return A.map((row) => dot(row, v, round));
}

/**
 * vᵀ A   [columns]
 * @type {(v: Vector, A: Matrix, round?: Rounding) => Vector}
 */
export function vecMat(v, A, round = float64) {
  return A[0].map((_, j) => {
    let sum = 0;
    for (let i = 0; i < v.length; i++) sum = round(sum + round(v[i] * A[i][j]));
    return sum;
  });
}

/** @type {(A: Matrix, B: Matrix, round?: Rounding) => Matrix} */
export function matMul(A, B, round = float64) {
  return A.map((row) => vecMat(row, B, round));
}

/**
 * u vᵀ   [len u, len v]
 * @type {(u: Vector, v: Vector, round?: Rounding) => Matrix}
 */
export function outer(u, v, round = float64) {
  return u.map((a) => v.map((b) => round(a * b)));
}

/**
 * The vector or matrix with `change` applied to each entry.
 * @type {<P extends Parameter>(A: P, change: (entry: number) => number) => P}
 */
export function eachEntry(A, change) {
  return /** @type {any} */ (A.map((a) => (Array.isArray(a) ? eachEntry(a, change) : change(a))));
}

/**
 * Sum of two vectors or of two matrices of one shape.
 * @type {<P extends Parameter>(A: P, B: P, round?: Rounding) => P}
 */
export function add(A, B, round = float64) {
  const other = /** @type {any} */ (B);
  return /** @type {any} */ (A.map((a, i) => (Array.isArray(a) ? add(a, other[i], round) : round(a + other[i]))));
}

/** @type {<P extends Parameter>(A: P, factor: number, round?: Rounding) => P} */
export function scale(A, factor, round = float64) {
  return eachEntry(A, (a) => round(a * factor));
}

/** @type {<P extends Parameter>(A: P, B: P, round?: Rounding) => P} */
export function subtract(A, B, round = float64) {
  return add(A, scale(B, -1), round);
}

/**
 * u ∘ v
 * @type {(u: Vector, v: Vector, round?: Rounding) => Vector}
 */
export function times(u, v, round = float64) {
  return u.map((a, i) => round(a * v[i]));
}

/** @type {<P extends Parameter>(A: P, by: number) => P} */
export function divide(A, by) {
  return eachEntry(A, (a) => a / by);
}

/**
 * A power of two near the largest entry: dividing by it rounds nothing, and then squares neither underflow nor
 * overflow. 1 where nothing is to be gained: all is 0, or something is infinite or NaN.
 * @type {(A: Parameter) => number}
 */
export function binade(A) {
  const largest = Math.max(...A.flat().map(Math.abs));
  return largest > 0 && largest < Infinity ? 2 ** Math.floor(Math.log2(largest)) : 1;
}

/**
 * Square root of the sum of squares of all entries; neither underflows nor overflows on the way.
 * @type {(A: Parameter) => number}
 */
export function norm(A) {
  return Math.hypot(...A.flat());
}

/**
 * Σ A ∘ B, for the angle between two gradients.
 * @type {(A: Parameter, B: Parameter) => number}
 */
export function inner(A, B) {
  return dot(A.flat(), B.flat());
}
