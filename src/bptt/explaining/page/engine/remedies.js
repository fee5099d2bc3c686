// What can be done about vanishing and exploding: clipping, truncation, an orthogonal start.
import { add, binade, divide, inner, norm, scale, subtract } from "./matrix.js";
/** @import { Matrix, Terms } from "../types.d.ts" */

/**
 * Clipping by norm (Pascanu et al. 2013): g · min(1, limit / ‖g‖), with the norms before and after it.
 * @type {(gradient: Matrix, limit: number) => { gradient: Matrix, before: number, after: number, factor: number }}
 */
export function clip(gradient, limit) {
  const before = norm(gradient);
  const factor = before > limit ? limit / before : 1;
  return { gradient: scale(gradient, factor), before, after: before * factor, factor };
}

/**
 * The sum of those terms (t, k) for which keep(t, k), against the sum of all. lost = ‖full − kept‖ / ‖full‖;
 * cosine: of the angle between the two. If full is 0, lost is 0 and cosine 1.
 * @type {(terms: Terms, keep: (t: number, k: number) => boolean) => { kept: Matrix, full: Matrix, lost: number,
 *   cosine: number }}
 */
export function truncate(terms, keep) {
  let full = scale(terms[1][1], 0);
  let kept = full;
  for (let t = 1; t < terms.length; t++) {
    for (let k = 1; k <= t; k++) {
      full = add(full, terms[t][k]);
      if (keep(t, k)) kept = add(kept, terms[t][k]);
    }
  }
  const size = norm(full);
  if (size === 0) return { kept, full, lost: 0, cosine: 1 };
  return { kept, full, lost: norm(subtract(full, kept)) / size, cosine: norm(kept) === 0 ? 0 : cosine(full, kept) };
}

/**
 * The cosine of the angle between two gradients, neither of them 0.
 * @type {(A: Matrix, B: Matrix) => number}
 */
export function cosine(A, B) {
  const [a, b] = [A, B].map((each) => divide(each, binade(each))); // a product of two tiny norms would be 0
  return Math.max(-1, Math.min(1, inner(a, b) / (norm(a) * norm(b))));
}

/**
 * Whether a term survives when each loss goes back through `steps` steps, its own included: t − k < steps.
 * @type {(steps: number) => ((t: number, k: number) => boolean)}
 */
export function within(steps) {
  return (t, k) => t - k < steps;
}

/**
 * Whether a term survives when the edges h(i−1) → h(i) with cuts[i] true are cut: none of them may lie between k and
 * t.
 * @type {(cuts: boolean[]) => ((t: number, k: number) => boolean)}
 */
export function uncut(cuts) {
  return (t, k) => {
    for (let i = k + 1; i <= t; i++) if (cuts[i]) return false;
    return true;
  };
}

/**
 * The orthogonal 2 × 2 matrix that rotates by `angle` (radians).
 * @type {(angle: number) => Matrix}
 */
export function rotation(angle) {
  return [
    [Math.cos(angle), -Math.sin(angle)],
    [Math.sin(angle), Math.cos(angle)],
  ];
}
