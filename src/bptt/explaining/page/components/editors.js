// The shared network's editors, as the scenes need them.
import { formula, maths } from "./formula.js";
import { choices, matrixEditor, slider } from "./inputs.js";
import { MAX_T, withSteps } from "../shell/model.js";
/** @import { Page, PickPart, State } from "../types.d.ts" */

/** @type {(t: number) => string} */
const step = (t) => `${t + 1}`;

/** @type {(page: Page, kind: "hx" | "hh" | "yh") => HTMLElement} */
export const weightEditor = (page, kind) =>
  matrixEditor(page, { field: `W_${kind}`, caption: formula(`\\${kind}{W_{${kind}}}`), colour: kind });

/** @type {(page: Page, kind: "h" | "y") => HTMLElement} */
export const biasEditor = (page, kind) => matrixEditor(page, { field: `b_${kind}`, caption: formula(`b_${kind}`) });

/**
 * Editors of all parameters and of the input.
 * @type {(page: Page) => HTMLElement[]}
 */
export const networkEditors = (page) => [
  weightEditor(page, "hx"),
  weightEditor(page, "hh"),
  biasEditor(page, "h"),
  weightEditor(page, "yh"),
  biasEditor(page, "y"),
  inputEditor(page),
];

/**
 * The editor of the input; its columns are the steps.
 * @type {(page: Page) => HTMLElement}
 */
export const inputEditor = (page) =>
  matrixEditor(page, { field: "x", caption: formula("x(t)"), upright: true, heads: step });

/**
 * Editors of the targets, of which the chosen head's is visible: a label, 0 or 1, or a vector for each step.
 * @type {(page: Page) => HTMLElement[]}
 */
export function targetEditors(page) {
  /** @type {(state: State) => boolean} */
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

/** @type {(page: Page) => HTMLElement} */
export const activationChoice = (page) =>
  choices(page, {
    label: ["Activation ", maths("σ_h")],
    field: "activation",
    options: { tanh: "tanh", sigmoid: "sigmoid", relu: "ReLU" },
  });

/** @type {(page: Page) => HTMLElement} */
export const headChoice = (page) =>
  choices(page, {
    label: ["Output ", maths("σ_y")],
    field: "head",
    options: { softmax: "softmax", sigmoid: "sigmoid", linear: "linear" },
  });

/** @type {(page: Page) => HTMLElement} */
export const countedChoice = (page) =>
  choices(page, {
    label: "Losses that count",
    field: "counted",
    options: { each: "every step", last: "the last only" },
  });

/**
 * The slider of the loss step t, which ↑ ↓ move too in lecture mode.
 * @type {(page: Page) => HTMLElement}
 */
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

/**
 * The slider of the earlier step k; moving it beyond t takes t along.
 * @type {(page: Page) => HTMLElement}
 */
export const earlierStepSlider = (page) =>
  slider(page, {
    label: "Earlier step k",
    min: 1,
    max: (state) => state.x.length,
    read: ({ k }) => k,
    write: (k, { t }) => ({ k, t: Math.max(k, t) }),
    say: String,
  });

/** @type {(page: Page) => HTMLElement} */
export const lengthSlider = (page) =>
  slider(page, {
    label: "Steps T",
    min: 1,
    max: MAX_T,
    read: ({ x }) => x.length,
    write: (T, state) => withSteps(state, T),
    say: String,
  });

/**
 * The answer to a click on networkDrawing: h(k) chooses k; y(t), L(t), and an h beyond t choose t.
 * @type {(page: Page) => PickPart}
 */
export function choosePair(page) {
  return (key, step, what) => {
    if (what !== "click" || step === 0) return;
    page.set(({ t, k }) => (key.startsWith("h") && step <= t ? { k: step } : { t: step, k: Math.min(k, step) }));
  };
}
