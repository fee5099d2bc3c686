// Singular values and, for 2 × 2, eigenvalues of small matrices.
import { binade, divide, dot, identity, norm, transpose } from "./matrix.js";
/** @import { Decomposition, Matrix, Vector } from "../types.d.ts" */

/**
 * A = U diag(s) Vᵀ with s descending; by one-sided Jacobi rotations (Hestenes 1958). The left vector of a singular
 * value 0 is left 0. A [m, n], U [m, n], s [n], V [n, n].
 * @type {(A: Matrix) => Decomposition}
 */
export function svd(A) {
  const unit = binade(A);
  const columns = transpose(divide(A, unit));
  const right = identity(columns.length);
  for (let sweep = 0; sweep < 60 && rotateAll(columns, right); sweep++);
  const sizes = columns.map((column) => norm(column));
  const order = sizes.map((_, i) => i).sort((a, b) => sizes[b] - sizes[a]);
  const left = order.map((i) => columns[i].map((value) => (sizes[i] > 0 ? value / sizes[i] : 0)));
  return { U: transpose(left), s: order.map((i) => sizes[i] * unit), V: transpose(order.map((i) => right[i])) };
}

/** @type {(A: Matrix) => Vector} */
export function singularValues(A) {
  return svd(A).s;
}

/**
 * Rotates all pairs of columns once (a sweep); false when all are orthogonal already.
 * @type {(columns: Matrix, right: Matrix) => boolean}
 */
function rotateAll(columns, right) {
  let rotated = false;
  for (let i = 0; i < columns.length; i++) {
    for (let j = i + 1; j < columns.length; j++) {
      const a = dot(columns[i], columns[i]);
      const b = dot(columns[j], columns[j]);
      const c = dot(columns[i], columns[j]);
      if (!(Math.abs(c) > 1e-16 * Math.sqrt(a * b))) continue;
      rotated = true;
      const zeta = (b - a) / (2 * c);
      const tangent = (zeta >= 0 ? 1 : -1) / (Math.abs(zeta) + Math.hypot(1, zeta));
      rotate(columns[i], columns[j], tangent);
      rotate(right[i], right[j], tangent);
    }
  }
  return rotated;
}

/** @type {(u: Vector, v: Vector, tangent: number) => void} */
function rotate(u, v, tangent) {
  const cosine = 1 / Math.hypot(1, tangent);
  const sine = cosine * tangent;
  for (let i = 0; i < u.length; i++) {
    [u[i], v[i]] = [cosine * u[i] - sine * v[i], sine * u[i] + cosine * v[i]];
  }
}

/**
 * The two eigenvalues of a 2 × 2 matrix as {re, im}, the larger modulus first.
 * @type {(A: Matrix) => { re: number, im: number }[]}
 */
export function eigenvalues2(A) {
  const [[a, b], [c, d]] = A;
  const mean = (a + d) / 2;
  const square = ((a - d) / 2) ** 2 + b * c;
  const root = Math.sqrt(Math.abs(square));
  if (square < 0)
    return [
      { re: mean, im: root },
      { re: mean, im: -root },
    ];
  return [mean + root, mean - root].sort((p, q) => Math.abs(q) - Math.abs(p)).map((re) => ({ re, im: 0 }));
}

/**
 * max |λ| of a 2 × 2 matrix.
 * @type {(A: Matrix) => number}
 */
export function spectralRadius2(A) {
  const [{ re, im }] = eigenvalues2(A);
  return Math.hypot(re, im);
}
