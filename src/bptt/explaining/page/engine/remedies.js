// What can be done about vanishing and exploding: clipping, truncation, an orthogonal start.
import { add, binade, divide, inner, norm, scale, subtract } from "./matrix.js";

// Clipping by norm (Pascanu et al. 2013): g · min(1, limit / ‖g‖). {gradient, before, after, factor}
export function clip(gradient, limit) {
  const before = norm(gradient);
  const factor = before > limit ? limit / before : 1;
  return { gradient: scale(gradient, factor), before, after: before * factor, factor };
}

// The sum of those terms (t, k) for which keep(t, k), against the sum of all.
// {kept, full, lost: ‖full − kept‖ / ‖full‖, cosine of the angle between them}; lost is 0 and cosine 1 if full is 0.
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

// Of the angle between two gradients, neither of them 0.
export function cosine(A, B) {
  const [a, b] = [A, B].map((each) => divide(each, binade(each))); // a product of two tiny norms would be 0
  return Math.max(-1, Math.min(1, inner(a, b) / (norm(a) * norm(b))));
}

// Each loss goes back through `steps` steps, its own included: t − k < steps.
export const within = (steps) => (t, k) => t - k < steps;

// The edges h(i−1) → h(i) with cuts[i] true are cut: a term passes only if none lies between k and t.
export function uncut(cuts) {
  return (t, k) => {
    for (let i = k + 1; i <= t; i++) if (cuts[i]) return false;
    return true;
  };
}

// The orthogonal 2 × 2 matrix that rotates by `angle` (radians).
export function rotation(angle) {
  return [
    [Math.cos(angle), -Math.sin(angle)],
    [Math.sin(angle), Math.cos(angle)],
  ];
}
