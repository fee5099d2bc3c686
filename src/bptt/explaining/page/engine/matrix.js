// Vectors and small matrices as plain arrays. `round` is float64 (the identity) or float32: it follows every operation.

export const float64 = (value) => value;
export const float32 = Math.fround;

export function zeros(rows, columns) {
  if (columns === undefined) return new Array(rows).fill(0);
  return Array.from({ length: rows }, () => new Array(columns).fill(0));
}

export function identity(n) {
  return zeros(n, n).map((row, i) => row.map((_, j) => (i === j ? 1 : 0)));
}

export function transpose(A) {
  return A[0].map((_, j) => A.map((row) => row[j]));
}

// u · v, summed from left to right.
export function dot(u, v, round = float64) {
  let sum = 0;
  for (let i = 0; i < u.length; i++) sum = round(sum + round(u[i] * v[i]));
  return sum;
}

// A v   [rows]
export function matVec(A, v, round = float64) {
  return A.map((row) => dot(row, v, round));
}

// vᵀ A   [columns]
export function vecMat(v, A, round = float64) {
  return A[0].map((_, j) => {
    let sum = 0;
    for (let i = 0; i < v.length; i++) sum = round(sum + round(v[i] * A[i][j]));
    return sum;
  });
}

export function matMul(A, B, round = float64) {
  return A.map((row) => vecMat(row, B, round));
}

// u vᵀ   [len u, len v]
export function outer(u, v, round = float64) {
  return u.map((a) => v.map((b) => round(a * b)));
}

// Sum of two vectors or of two matrices of one shape.
export function add(A, B, round = float64) {
  return A.map((a, i) => (Array.isArray(a) ? add(a, B[i], round) : round(a + B[i])));
}

export function scale(A, factor, round = float64) {
  return A.map((a) => (Array.isArray(a) ? scale(a, factor, round) : round(a * factor)));
}

export function subtract(A, B, round = float64) {
  return add(A, scale(B, -1), round);
}

// u ∘ v
export function times(u, v, round = float64) {
  return u.map((a, i) => round(a * v[i]));
}

export function divide(A, by) {
  return A.map((a) => (Array.isArray(a) ? divide(a, by) : a / by));
}

// A power of two near the largest entry: dividing by it rounds nothing, and then squares neither underflow nor overflow.
// 1 where nothing is to be gained: all is 0, or something is infinite or NaN.
export function binade(A) {
  const largest = Math.max(...A.flat().map(Math.abs));
  return largest > 0 && largest < Infinity ? 2 ** Math.floor(Math.log2(largest)) : 1;
}

// Square root of the sum of squares of all entries; neither underflows nor overflows on the way.
export function norm(A) {
  return Math.hypot(...A.flat());
}

// Σ A ∘ B, for the angle between two gradients.
export function inner(A, B) {
  return dot(A.flat(), B.flat());
}
