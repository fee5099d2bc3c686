// The shared network's editors, as the scenes need them.
import { formula, maths } from "./formula.js";
import { choices, matrixEditor, slider } from "./inputs.js";
import { MAX_T, withSteps } from "../shell/model.js";

const step = (t) => `${t + 1}`;

export const weightEditor = (page, kind) =>
  matrixEditor(page, { field: `W_${kind}`, caption: formula(`\\${kind}{W_{${kind}}}`), colour: kind });

export const biasEditor = (page, kind) => matrixEditor(page, { field: `b_${kind}`, caption: formula(`b_${kind}`) });

// The columns are the steps.
export const inputEditor = (page) =>
  matrixEditor(page, { field: "x", caption: formula("x(t)"), upright: true, heads: step });

// The targets of the head that is chosen: a label, 0 or 1, or a vector for each step.
export function targetEditors(page) {
  const linear = (state) => state.head === "linear";
  const caption = () => formula("\\text{target}(t)");
  return [
    matrixEditor(page, {
      field: "labels",
      caption: caption(),
      upright: true,
      heads: step,
      hidden: linear,
      accepts: (value) => value === 0 || value === 1,
    }),
    matrixEditor(page, {
      field: "targets",
      caption: caption(),
      upright: true,
      heads: step,
      hidden: (state) => !linear(state),
    }),
  ];
}

export const activationChoice = (page) =>
  choices(page, {
    label: ["Activation ", maths("σ_h")],
    field: "activation",
    options: { tanh: "tanh", sigmoid: "sigmoid", relu: "ReLU" },
  });

export const headChoice = (page) =>
  choices(page, {
    label: ["Output ", maths("σ_y")],
    field: "head",
    options: { softmax: "softmax", sigmoid: "sigmoid", linear: "linear" },
  });

export const countedChoice = (page) =>
  choices(page, { label: "Losses that count", field: "counted", options: { each: "every step", last: "the last only" } });

// t, which lecture mode's ↑ ↓ move too.
export function lossStepSlider(page) {
  page.steps(({ t, k, x }, by) => {
    const next = Math.min(x.length, Math.max(1, t + by));
    return { t: next, k: Math.min(k, next) };
  });
  return slider(page, {
    label: "Step t",
    min: 1,
    max: (state) => state.x.length,
    read: (state) => state.t,
    write: (t, { k }) => ({ t, k: Math.min(k, t) }),
    say: String,
  });
}

// k ≤ t: moving k beyond t takes t along.
export const earlierStepSlider = (page) =>
  slider(page, {
    label: "Earlier step k",
    min: 1,
    max: (state) => state.x.length,
    read: ({ k }) => k,
    write: (k, { t }) => ({ k, t: Math.max(k, t) }),
    say: String,
  });

export const lengthSlider = (page) =>
  slider(page, {
    label: "Steps T",
    min: 1,
    max: MAX_T,
    read: ({ x }) => x.length,
    write: (T, state) => withSteps(state, T),
    say: String,
  });

// For networkDrawing: a click on h(k) chooses k, one on y(t) or L(t) chooses t; h beyond t too.
export function choosePair(page) {
  return (key, step, what) => {
    if (what !== "click" || step === 0) return;
    page.set(({ t, k }) => (key.startsWith("h") && step <= t ? { k: step } : { t: step, k: Math.min(k, step) }));
  };
}
