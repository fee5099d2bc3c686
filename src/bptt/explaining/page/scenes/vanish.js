// Scene 6, eq. (11) and (12): a circle of perturbations of h(1) becomes an ellipse under each Jacobian.
import { controls, equation, lead, presets } from "../components/blocks.js";
import { el } from "../components/dom.js";
import { circleAndEllipse, ellipseStrip } from "../components/ellipse.js";
import { formula, liveFormula, maths, numbersOf } from "../components/formula.js";
import { choices, slider } from "../components/inputs.js";
import { logChart } from "../components/logchart.js";
import { logSlider } from "../components/logslider.js";
import { show, showPower } from "../components/numbers.js";
import { predictFirst } from "../components/predict.js";
import { fixed, python } from "../components/pytorch.js";
import { chainsFrom, growth, logSvd, outOfRange } from "../engine/growth.js";
import { float32, identity, matMul, zeroMatrix } from "../engine/matrix.js";
import { run } from "../engine/network.js";
import { rotation } from "../engine/remedies.js";
import { spectralRadius2 } from "../engine/svd.js";
import { jacobian } from "../engine/terms.js";
import { choice, integer, namesOf, number } from "../shell/fields.js";
import { keptFor } from "../shell/kept.js";
/**
 * @import {
 *   Decomposition, FieldsOf, LogChart, Matrix, Page, Patch, Program, RnnNetwork, Scene, State
 * } from "../types.d.ts"
 */

const GAMMA = { tanh: 1, sigmoid: 0.25, relu: 1 }; // the largest slope of σ_h
const SMALLEST = { float32: -44.85, float64: -323.3 }; // log₁₀ of the smallest positive number

export const fields = {
  vanish_s1: number(0.9, { min: 0.001, max: 100 }), // σ₁(W_hh)
  vanish_ratio: number(0.7, { min: 1e-5, max: 1 }), // σ₂ / σ₁
  vanish_turn: number(25, { min: 0, max: 180 }), // degrees
  vanish_act: choice("tanh", namesOf(GAMMA)),
  vanish_input: number(0.5, { min: 0, max: 10 }), // x(t) = (input, input)
  vanish_T: integer(30, { min: 2, max: 50 }),
  vanish_lag: integer(5, { min: 1, max: 49 }),
  vanish_float: choice("float64", ["float64", "float32"]),
};

/** @type {Scene} */
export const scene = { id: "vanish", order: 6, short: "Vanish", title: "Vanish and explode", fields, mount, pytorch };

/** @type {Record<string, Patch>} */
const PRESETS = {
  "Eigenvalues lie": {
    vanish_s1: 40,
    vanish_ratio: 0.00050625,
    vanish_turn: 87.5,
    vanish_act: "tanh",
    vanish_input: 0,
    vanish_T: 50,
    vanish_lag: 5,
    vanish_float: "float64",
  },
  "σ₁ > 1, yet it vanishes": {
    vanish_s1: 3,
    vanish_ratio: 1,
    vanish_turn: 10,
    vanish_act: "tanh",
    vanish_input: 1,
    vanish_T: 50,
    vanish_lag: 5,
    vanish_float: "float32",
  },
};

/** @type {(state: State) => Matrix} */
const weights = ({ vanish_s1, vanish_ratio, vanish_turn }) =>
  matMul(rotation((vanish_turn * Math.PI) / 180), [
    [vanish_s1, 0],
    [0, vanish_s1 * vanish_ratio],
  ]);

const measured = keptFor((/** @type {State} */ state) => {
  const W_hh = weights(state);
  const [I, x] = [identity(2), Array.from({ length: state.vanish_T }, () => [state.vanish_input, state.vanish_input])];
  /** @type {RnnNetwork} */
  const net = {
    cell: "rnn",
    activation: state.vanish_act,
    head: "linear",
    counted: "last",
    W_hx: I,
    W_hh,
    b_h: [0, 0],
    W_yh: I,
    b_y: [0, 0],
  };
  const forward = run(net, x, zeroMatrix(state.vanish_T, 2));
  const chosen =
    state.vanish_float === "float32" ? run(net, x, zeroMatrix(state.vanish_T, 2), { round: float32 }) : forward;
  const chains = chainsFrom(chosen, 1);
  /** @type {(t: number | null) => number | null} */
  const after = (t) => (t === null ? null : t - 1); // a lag
  const { died, overflowed } = outOfRange(chains);
  return {
    W_hh,
    forward,
    lags: growth(forward, 1),
    naive: chains.slice(1).map((product) => logSvd(product).s[0]),
    died: after(died),
    overflowed: after(overflowed),
    last: state.vanish_T - 1,
    lag: Math.min(state.vanish_lag, state.vanish_T - 1),
    factor: GAMMA[state.vanish_act] * state.vanish_s1,
  };
});

/** @type {Scene["mount"]} */
function mount(root, page) {
  root.append(
    lead(
      "Disturb h(1) a little, in every direction: a circle. Each Jacobian turns it into another ellipse. Its " +
        "half axes are the singular values of the product ∂h(t)/∂h(1), and the gradient that travels back is stretched by the same numbers.",
    ),
    presets(page, PRESETS),
    pictures(page),
    sliders(page),
    el("p", { class: "said", role: "status" }, text(page, verdict), " ", text(page, precision)),
    equation("The recurrent matrix", liveFormula(page, matrix)),
    equation("The last factor at this lag", liveFormula(page, lastFactor)),
    bound(),
    question(page),
  );
}

/**
 * Circle and ellipse at the chosen lag, beside curves over all lags.
 * @type {(page: Page) => HTMLElement}
 */
function pictures(page) {
  /** @type {(lag: number) => void} */
  const pick = (lag) => page.set({ vanish_lag: Math.max(1, lag) });
  return el(
    "div",
    { class: "pictures" },
    el("figure", {}, circleAndEllipse(page, picture), el("figcaption", {}, text(page, caption))),
    el("div", {}, logChart(page, chart, { pick }), ellipseStrip(page, measured, pick)),
  );
}

/** @type {(page: Page) => HTMLElement} */
function sliders(page) {
  return controls(
    lagSlider(page),
    logSlider(page, { label: maths("σ_1(\\hh{W_{hh}})"), field: "vanish_s1", min: 0.01, max: 100 }),
    logSlider(page, { label: maths("σ_2 / σ_1"), field: "vanish_ratio", min: 0.0001, max: 1 }),
    plainSlider(page, "Rotation", "vanish_turn", {
      min: 0,
      max: 180,
      step: 0.1,
      say: (value) => `${show(value, 1)}°`,
    }),
    plainSlider(page, "Input x", "vanish_input", { min: 0, max: 3, step: 0.05 }),
    plainSlider(page, "Steps T", "vanish_T", { min: 2, max: 50, say: String }),
    choices(page, {
      label: "Activation",
      field: "vanish_act",
      options: { tanh: "tanh", sigmoid: "sigmoid", relu: "ReLU" },
    }),
    choices(page, {
      label: "Product in",
      field: "vanish_float",
      options: { float64: "float64", float32: "float32" },
    }),
  );
}

/** @type {() => HTMLElement} */
function bound() {
  return equation(
    "The bound",
    formula(
      "‖ \\frac{∂h(t)}{∂h(k)} ‖",
      "≤ \\prod_{i=k+1}^{t} ‖ \\frac{∂h(i)}{∂h(i-1)} ‖",
      "≤ (γ σ_1(\\hh{W_{hh}}))^{t-k}",
      ", \\text{~} γ = \\fn{max} |σ_h′|",
    ),
    el(
      "p",
      { class: "note" },
      "γ is 1 for tanh and ReLU, 1/4 for the sigmoid. σ₁ < 1/γ is sufficient for vanishing; σ₁ > 1/γ is only necessary " +
        "for exploding (Pascanu et al. 2013). And a state that holds a bit against noise sits where the factors shrink: what it " +
        "remembers safely, the gradient forgets (Bengio et al. 1994).",
    ),
  );
}

/** @type {(page: Page) => HTMLElement} */
function question(page) {
  return predictFirst(page, {
    question: [
      "Both eigenvalues of ",
      maths("\\hh{W_{hh}}"),
      " have modulus 0.9, and the network is linear. Can a perturbation grow 100-fold?",
    ],
    options: ["no, it shrinks by 0.9 at each step", "yes, for some steps", "yes, without end"],
    right: 1,
    why: el(
      "p",
      {},
      "Eigenvalues rule only the long run. One step stretches by up to σ₁, which is much larger where the " +
        "eigenvectors are far from orthogonal. The preset “Eigenvalues lie” shows it: at rest tanh has slope 1, so the network is linear.",
    ),
  });
}

/**
 * A text node that follows the state.
 * @type {(page: Page, make: (state: State) => string) => Text}
 */
function text(page, make) {
  const node = document.createTextNode("");
  page.follow((state) => {
    const now = make(state);
    if (node.data !== now) node.data = now;
  });
  return node;
}

/** @type {(page: Page) => HTMLElement} */
function lagSlider(page) {
  return slider(page, {
    label: "Lag t − 1",
    min: 1,
    max: (state) => state.vanish_T - 1,
    read: (state) => measured(state).lag,
    write: (vanish_lag) => ({ vanish_lag }),
    say: String,
  });
}

/**
 * @type {(page: Page, label: string, field: FieldsOf<number>, limits: { min: number, max: number, step?: number,
 *   say?: (value: number) => string }) => HTMLElement}
 */
function plainSlider(page, label, field, limits) {
  return slider(page, { label, ...limits, read: (state) => state[field], write: (value) => ({ [field]: value }) });
}

/** @type {(state: State) => Decomposition & { label: string }} */
function picture(state) {
  const { lags, lag } = measured(state);
  return {
    ...lags[lag],
    label: `The circle, and the ellipse at lag ${lag} with half axes ${lags[lag].s.map(showPower).join(" and ")}`,
  };
}

/** @type {(state: State) => string} */
function caption(state) {
  const { lags, lag } = measured(state);
  return `Lag ${lag}: σ₁ = ${showPower(lags[lag].s[0])}, σ₂ = ${showPower(lags[lag].s[1])}. The direction ○ is stretched most: it goes to ●.`;
}

/** @type {(state: State) => LogChart} */
function chart(state) {
  const { lags, naive, lag, last, factor } = measured(state);
  const [first, second] = [0, 1].map((i) => lags.map(({ s }) => s[i]));
  return {
    last,
    at: lag,
    lines: [
      { name: "σ₁", kind: "first", values: first },
      { name: "σ₂", kind: "second", values: second },
      { name: "bound (γσ₁)ˡᵃᵍ", kind: "bound", values: lags.map((_, i) => i * Math.log10(factor)) },
      { name: `σ₁ in ${state.vanish_float}`, kind: "dots", values: naive },
    ],
    level: { at: SMALLEST[state.vanish_float], text: `smallest ${state.vanish_float}` },
    label: `Singular values of ∂h(t)/∂h(1) over the lag, log scale: σ₁ ends at ${showPower(first[last])}, σ₂ at ${showPower(second[last])}`,
  };
}

/** @type {(state: State) => string} */
function verdict(state) {
  const { lags, factor, last } = measured(state);
  const logs = lags.map(({ s }) => s[0]);
  const [end, top] = [logs[last], Math.max(...logs)];
  const rule =
    factor < 1
      ? `γσ₁ = ${show(factor)} < 1: the product must vanish.`
      : factor > 1
        ? `γσ₁ = ${show(factor)} > 1: the product may grow, it need not.`
        : "γσ₁ = 1: the product cannot grow.";
  const peak = top > Math.max(0, end) + 0.1 ? ` On the way it is ${showPower(top)} at lag ${logs.indexOf(top)}.` : "";
  return `${rule} Measured: σ₁ is ${showPower(end)} at lag ${last}.${peak}`;
}

/** @type {(state: State) => string} */
function precision(state) {
  const { died, overflowed, last } = measured(state);
  const kind = state.vanish_float;
  if (died !== null)
    return `In ${kind} the product is exactly 0 from lag ${died} on: no gradient passes, in no direction.`;
  if (overflowed !== null) return `In ${kind} the product overflows at lag ${overflowed}.`;
  return `In ${kind} the product is not yet 0 at lag ${last}.`;
}

/** @type {(state: State) => string[]} */
function matrix(state) {
  const { W_hh } = measured(state);
  return [`\\hh{W_{hh}} = \\hh{${numbersOf(W_hh)}}`, `\\text{spectral~radius~} ρ = ${show(spectralRadius2(W_hh))}`];
}

/** @type {(state: State) => string[]} */
function lastFactor(state) {
  const { W_hh, forward, lag } = measured(state);
  const t = lag + 1;
  return [
    `\\frac{∂h(${t})}{∂h(${lag})} = \\fn{diag}(σ_h′(z_h(${t}))) \\hh{W_{hh}}`,
    `= \\fn{diag} ${numbersOf(forward.steps[t].slopes)} \\hh{${numbersOf(W_hh)}}`,
    `= ${numbersOf(jacobian(forward, t))}`,
  ];
}

const SLOPES = { tanh: "1 - h * h", sigmoid: "h * (1 - h)", relu: "(h > 0).to(h)" };

/**
 * log₁₀ σ₁ and σ₂ at some lags in float64, and the lag at which the product is exactly 0 in float32 (None: at
 * none).
 * @type {(state: State) => Program}
 */
function pytorch(state) {
  const { vanish_act, vanish_input, vanish_T } = state;
  const { lags, W_hh, last } = measured(state);
  const shown = [...new Set([1, 2, 5, 10, 20, 40, last])].filter((lag) => lag <= last);
  const died = measured({ ...state, vanish_float: "float32" }).died;
  const code = [
    "import torch",
    "for dtype in (torch.float64, torch.float32):",
    `    W_hh = torch.tensor(${python(W_hh)}, dtype=dtype)`,
    "    h, P, det, dead = torch.zeros(2, dtype=dtype), torch.eye(2, dtype=dtype), 0, None",
    `    for lag in range(${vanish_T}):  # h(1) is at lag 0`,
    `        h = torch.${vanish_act}(W_hh @ h + ${vanish_input})`,
    "        if lag > 0:",
    `            J = torch.diag(${SLOPES[vanish_act]}) @ W_hh`,
    "            P, det = J @ P, det + J.det().abs().log10()",
    "            dead = lag if dead is None and (P == 0).all() else dead",
    `            if dtype == torch.float64 and lag in ${python(shown)}:`,
    "                s1 = torch.linalg.matrix_norm(P, 2).log10()  # log10 of the singular values",
    '                print(lag, f"{s1:.6f} {det - s1:.6f}")',
    'print("0 in float32 from lag", dead)',
  ];
  const rows = shown.map((lag) => `${lag} ${lags[lag].s.map((value) => fixed(value, 6)).join(" ")}`);
  return { code: code.join("\n"), prints: [...rows, `0 in float32 from lag ${died ?? "None"}`].join("\n") };
}
