// Scene 7: what is done against eq. (12), measured on the spot; and the LSTM, eq. (14).
import { arrows } from "../components/arrows.js";
import { controls, equation, lead, presets } from "../components/blocks.js";
import { el } from "../components/dom.js";
import { lengthSlider, weightEditor } from "../components/editors.js";
import { formula, liveFormula, maths, numbersOf } from "../components/formula.js";
import { button, slider } from "../components/inputs.js";
import { logChart } from "../components/logchart.js";
import { logSlider } from "../components/logslider.js";
import { networkDrawing } from "../components/network.js";
import { show, showPower } from "../components/numbers.js";
import { predictFirst } from "../components/predict.js";
import { activationCode, digits, formatOf, lossCode, numbers, printOf, python } from "../components/pytorch.js";
import { sentence } from "../components/sentence.js";
import { valves } from "../components/valves.js";
import { horizon, reach } from "../engine/growth.js";
import { eachEntry, norm } from "../engine/matrix.js";
import { cellPath, forwardOf, racers } from "../engine/race.js";
import { clip, cosine, truncate, uncut } from "../engine/remedies.js";
import { integer, number } from "../shell/fields.js";
import { keptFor, keptWhile } from "../shell/kept.js";
import { results } from "../shell/model.js";
/** @import { LogChart, Matrix, Page, Patch, Program, Results, Scene, State, Vector } from "../types.d.ts" */

const [H, D, SHARE] = [4, 2, 0.01]; // units and inputs of the race; the horizon is where this share is left

export const fields = {
  remedies_clip: number(0.4, { min: 0.001, max: 1000 }), // the largest norm
  remedies_cuts: integer(4, { min: 0, max: 63 }), // bit i − 1: the edge from h(i − 1) to h(i) is cut on the way back
  remedies_bias: number(1, { min: -6, max: 8 }), // the forget gates' bias
  remedies_input: number(1, { min: 0, max: 5 }), // inputs are uniform in ± this
  remedies_T: integer(50, { min: 2, max: 50 }),
  remedies_seed: integer(1, { min: 1, max: 9999 }),
};

/** @type {Scene} */
export const scene = {
  id: "remedies",
  order: 7,
  short: "Remedies",
  title: "Remedies, measured",
  fields,
  mount,
  pytorch,
};

/** @type {(state: State, i: number) => boolean} */
const isCut = ({ remedies_cuts }, i) => Boolean(remedies_cuts & (1 << (i - 1)));

// On the network that all scenes share: the gradient of W_hh clipped, and cut.
const shared = keptFor((/** @type {State} */ state) => {
  const { forward, gradient, terms } = results(state);
  const cuts = Array.from({ length: forward.T + 1 }, (_, i) => i > 1 && isCut(state, i));
  const cut = truncate(terms, uncut(cuts));
  const whole = terms.slice(1).flatMap((row, i) => row.slice(1).map((_, j) => [i + 1, j + 1]));
  return {
    gradient: gradient.W_hh,
    cuts,
    cut,
    all: whole.length,
    left: whole.filter(([t, k]) => uncut(cuts)(t, k)).length,
  };
});

/**
 * The networks of the race. The RNNs stay as they are when only the forget bias changes.
 * @type {(state: State) => ReturnType<typeof racers>}
 */
const networks = ({ remedies_seed: seed, remedies_T: T, remedies_input: size, remedies_bias: forgetBias }) =>
  racers({ seed, H, D, T, size, forgetBias });

const plainReach = keptWhile(
  ({ remedies_seed, remedies_T, remedies_input }) => `${remedies_seed} ${remedies_T} ${remedies_input}`,
  (state) => {
    const { rnn, orthogonal, x } = networks(state);
    return { rnn: reach(forwardOf(rnn, x)), orthogonal: reach(forwardOf(orthogonal, x)) };
  },
);

const raced = keptFor((/** @type {State} */ state) => {
  const { lstm, x } = networks(state);
  const forward = forwardOf(lstm, x);
  return {
    ...plainReach(state),
    lstm: reach(forward),
    path: cellPath(forward),
    forget: forward.steps.slice(1).map(({ f }) => f),
  };
});

/** @type {Scene["mount"]} */
function mount(root, page) {
  root.append(
    lead(
      "Exploding gradients are clipped. Vanishing ones need another way back: a start that keeps lengths, or a cell with a path of its own.",
    ),
    ...clipping(page),
    ...truncation(page),
    ...race(page),
    cPath(),
    question(page),
  );
  page.steps(({ remedies_bias }, by) => ({ remedies_bias: Math.min(8, Math.max(-6, remedies_bias + by)) }));
}

/** @type {(page: Page, make: (state: State) => string) => HTMLElement} */
const says = (page, make) => sentence(page, make, { class: "said", role: "status" });

// Clipping --------------------------------------------------------------------------------------

/** @type {(page: Page) => HTMLElement[]} */
function clipping(page) {
  const limit = logSlider(page, { label: "Largest norm", field: "remedies_clip", min: 0.01, max: 100 });
  return [
    el("h3", {}, "Clipping: the arrow gets shorter, its direction stays"),
    el(
      "div",
      { class: "clipping" },
      arrows(page, clipped),
      el("div", {}, limit, liveFormula(page, clipFormula), says(page, clipSaid)),
    ),
  ];
}

/** @type {(gradient: Matrix, limit: number) => Matrix} */
function byNumber(gradient, limit) {
  return eachEntry(gradient, (value) => Math.max(-limit, Math.min(limit, value)));
}

/** @type {(state: State) => { sets: { rows: Matrix, kind: string }[], names: string[], label: string }} */
function clipped(state) {
  const { gradient } = shared(state);
  const after = clip(gradient, state.remedies_clip);
  return {
    sets: [
      { rows: gradient, kind: "whole" },
      { rows: byNumber(gradient, state.remedies_clip / 2), kind: "by-number" },
      { rows: after.gradient, kind: "clipped" },
    ],
    names: ["1", "2"],
    label: `The two rows of the gradient of W hh as arrows: norm ${show(after.before)} before, ${show(after.after)} after clipping`,
  };
}

/** @type {(state: State) => string[]} */
function clipFormula(state) {
  const { gradient } = shared(state);
  const { before, factor, gradient: after } = clip(gradient, state.remedies_clip);
  return [
    `g = \\frac{∂L}{∂\\hh{W_{hh}}} = ${numbersOf(gradient)},`,
    `‖g‖ = ${show(before)},`,
    `\\fn{min}(1, \\frac{${show(state.remedies_clip)}}{‖g‖}) g`,
    `= ${show(factor)} g`,
    `= \\hh{${numbersOf(after)}}`,
  ];
}

/**
 * Why a gradient has no direction that could be kept, or "".
 * @type {(gradient: Matrix) => string}
 */
function withoutDirection(gradient) {
  const size = norm(gradient);
  if (!Number.isFinite(size)) return "The gradient is infinite or NaN: it has no direction that could be kept.";
  return size > 0 ? "" : "The gradient is zero: it has no direction that could be kept.";
}

/** @type {(state: State) => string} */
function clipSaid(state) {
  const { gradient } = shared(state);
  const { factor } = clip(gradient, state.remedies_clip);
  if (withoutDirection(gradient)) return withoutDirection(gradient);
  const other = byNumber(gradient, state.remedies_clip / 2);
  const turned = `Limiting each number by itself to ±${show(state.remedies_clip / 2)} (dashed) turns it by ${show((Math.acos(cosine(gradient, other)) * 180) / Math.PI, 1)}°.`;
  return `Each row is an arrow, the weights into h₁ and into h₂: grey before, orange after. ${factor < 1 ? "By norm it is not turned at all." : "The norm is within the limit: nothing is changed."} ${turned}`;
}

// Truncation ------------------------------------------------------------------------------------

/** @type {(page: Page) => HTMLElement[]} */
function truncation(page) {
  return [
    el("h3", {}, "Truncation: cut the way back"),
    cutDrawing(page),
    cutButtons(page),
    controls(lengthSlider(page)),
    liveFormula(page, cutFormula),
    says(page, cutSaid),
    el("div", { class: "matrices" }, weightEditor(page, "hx"), weightEditor(page, "hh"), weightEditor(page, "yh")),
  ];
}

/** @type {(state: State, i: number) => Patch} */
const toggled = (state, i) => ({ remedies_cuts: state.remedies_cuts ^ (1 << (i - 1)) });

/** @type {(page: Page) => HTMLElement} */
function cutDrawing(page) {
  return networkDrawing(
    page,
    (state, { forward }) => {
      const { cuts } = shared(state);
      const where = cuts.flatMap((each, i) => (each ? [`between h(${i - 1}) and h(${i})`] : []));
      return {
        T: forward.T,
        losses: true,
        counts: forward.counts,
        cut: new Set(cuts.flatMap((each, i) => (each ? [`hh${i}`] : []))),
        label: `The unfolded network; the way back is cut ${where.length ? where.join(", ") : "nowhere"}`,
      };
    },
    (key, i, what) => {
      if (what === "click" && key.startsWith("hh") && i > 1) page.set((state) => toggled(state, i));
    },
  );
}

/** @type {(page: Page) => HTMLElement} */
function cutButtons(page) {
  const host = el("div", { class: "cuts", role: "group", "aria-label": "Cuts" });
  /** @type {HTMLElement[]} */
  let buttons = [];
  page.follow((state) => {
    const { T } = results(state).forward;
    if (buttons.length !== T - 1) {
      buttons = Array.from({ length: T - 1 }, (_, n) => cutButton(page, n + 2));
      host.replaceChildren(...buttons);
    }
    buttons.forEach((each, n) => each.setAttribute("aria-pressed", String(isCut(state, n + 2))));
  });
  return host;
}

/**
 * The button that cuts the edge into h(i), or joins it again.
 * @type {(page: Page, i: number) => HTMLElement}
 */
function cutButton(page, i) {
  const label = { "aria-label": `Cut between h(${i - 1}) and h(${i})` };
  return button(`✂ ${i - 1} | ${i}`, () => page.set((now) => toggled(now, i)), label);
}

/** @type {(state: State) => string[]} */
function cutFormula(state) {
  const { cut } = shared(state);
  return [
    `g = ${numbersOf(cut.full)},`,
    `g_{\\fn{cut}} = \\hh{${numbersOf(cut.kept)}},`,
    `\\frac{‖g - g_{\\fn{cut}}‖}{‖g‖} = ${show(cut.lost)},`,
    `\\fn{cos}(g, g_{\\fn{cut}}) = ${show(cut.cosine)}`,
  ];
}

/** @type {(state: State) => string} */
function cutSaid(state) {
  const { cut, all, left } = shared(state);
  if (left === all)
    return `All ${all} terms are there. Cut an edge: the forward pass stays as it is, the gradient loses every term that crosses the cut.`;
  const lost = `${all - left} of ${all} terms cross a cut and are lost.`;
  if (withoutDirection(cut.full)) return `${lost} ${withoutDirection(cut.full)}`;
  return `${lost} Together they have ${show(100 * cut.lost, 1)} % of the gradient’s norm. The cosine says how far the direction is still right.`;
}

// The race --------------------------------------------------------------------------------------

const PRESETS = {
  "Forget bias 0": { remedies_bias: 0, remedies_input: 1, remedies_T: 50 },
  "Forget bias 4": { remedies_bias: 4, remedies_input: 1, remedies_T: 50 },
  "The LSTM vanishes too": { remedies_bias: -3, remedies_input: 1, remedies_T: 50 },
};

/** @type {(page: Page) => HTMLElement[]} */
function race(page) {
  return [
    el("h3", {}, "An orthogonal start, and the LSTM, beside the plain RNN"),
    el(
      "p",
      {},
      `Three untrained networks of ${H} units on the same inputs, with weights uniform in ±1/√${H}, as PyTorch starts them. How strongly does h(T) depend on the state some steps before?`,
    ),
    presets(page, PRESETS),
    logChart(page, chart),
    el("h3", {}, "The LSTM’s valves: the forget gates f(t), full is open"),
    valves(page, (state) => ({ gates: raced(state).forget, label: gatesLabel(state) })),
    controls(
      raceSlider(page, "Forget-gate bias", "remedies_bias", { min: -6, max: 8, step: 0.1 }),
      raceSlider(page, "Inputs ±", "remedies_input", { min: 0, max: 5, step: 0.1 }),
      raceSlider(page, "Steps T", "remedies_T", { min: 2, max: 50, say: String }),
      button("Other weights", () => page.set(({ remedies_seed }) => ({ remedies_seed: (remedies_seed % 9999) + 1 }))),
    ),
    says(page, raceSaid),
  ];
}

/**
 * @type {(page: Page, label: string, field: "remedies_bias" | "remedies_input" | "remedies_T",
 *   limits: { min: number, max: number, step?: number, say?: (value: number) => string }) => HTMLElement}
 */
function raceSlider(page, label, field, limits) {
  return slider(page, { label, ...limits, read: (state) => state[field], write: (value) => ({ [field]: value }) });
}

/** @type {() => HTMLElement} */
function cPath() {
  return equation(
    "The c path",
    formula(
      "c(t) = f(t) ∘ c(t-1) + i(t) ∘ g(t),",
      "\\frac{∂c(t)}{∂c(k)} =",
      "\\fn{diag} \\prod_{i=k+1}^{t} f(i)",
      "+ \\text{~what~goes~through~} h",
    ),
    el(
      "p",
      {},
      "Along c nothing is multiplied by a weight matrix or by a slope: only by the forget gates. In the first LSTM this factor was 1 " +
        "(Hochreiter and Schmidhuber 1997); the forget gate came later (Gers et al. 2000), and its bias is best started at 1 or more " +
        "(Jozefowicz et al. 2015). An orthogonal ",
      maths("\\hh{W_{hh}}"),
      " keeps lengths (Saxe et al. 2014), so only the slopes of ",
      maths("σ_h"),
      " shrink. Clipping by norm: Pascanu et al. 2013.",
    ),
  );
}

/** @type {(page: Page) => HTMLElement} */
function question(page) {
  return predictFirst(page, {
    question: "The forget gates of an LSTM all stand at 0.5. What is left of a gradient after 20 steps along c alone?",
    options: ["all of it: c is a sum", "half of it", "a millionth"],
    right: 2,
    why: [
      el(
        "p",
        {},
        "Each step multiplies by the forget gate. An LSTM has no vanishing gradient only where its gates are open: a bias of 4 opens them to 0.98.",
      ),
      formula("0.5^{20} ≈ 10^{-6},", "0.98^{20} ≈ 0.7"),
    ],
  });
}

/** @type {(state: State) => LogChart} */
function chart(state) {
  const { rnn, orthogonal, lstm, path } = raced(state);
  const last = state.remedies_T - 1;
  return {
    last,
    lines: [
      { name: "RNN", kind: "second", values: rnn },
      { name: "RNN, orthogonal start", kind: "first", values: orthogonal },
      { name: "LSTM", kind: "other", values: lstm },
      { name: "its c path alone", kind: "bound", values: path },
    ],
    level: { at: Math.log10(SHARE), text: "1 %" },
    label:
      `σ₁ of the derivative of h(T) by the state l steps before, log scale: at lag ${last} the RNN has ${showPower(rnn[last])}, ` +
      `with an orthogonal start ${showPower(orthogonal[last])}, the LSTM ${showPower(lstm[last])}`,
  };
}

/** @type {(state: State) => string} */
function raceSaid(state) {
  /** @type {(logs: Vector) => string} */
  const far = (logs) => {
    const lag = horizon(logs, SHARE);
    return lag === null ? `more than ${state.remedies_T - 1}` : `${lag}`;
  };
  const { rnn, orthogonal, lstm } = raced(state);
  return `Lag at which less than 1 % is left: ${far(rnn)} in the RNN, ${far(orthogonal)} with the orthogonal start, ${far(lstm)} in the LSTM.`;
}

/** @type {(state: State) => string} */
function gatesLabel(state) {
  const all = raced(state).forget.flat();
  return `Forget gates from ${show(Math.min(...all), 2)} to ${show(Math.max(...all), 2)}, mean ${show(all.reduce((a, b) => a + b) / all.length, 2)}`;
}

/**
 * The gradient of W_hh without cuts and with them, each also clipped.
 * @type {(state: State, results: Results) => Program}
 */
function pytorch(state, { net, forward }) {
  const { cuts, cut } = shared(state);
  const at = cuts.flatMap((each, i) => (each ? [i - 1] : []));
  const rows = [cut.full, cut.kept].map((g) => [...g.flat(), ...clip(g, state.remedies_clip).gradient.flat()]);
  const format = formatOf(...rows);
  const code = [
    ...numbers(state, { net }),
    `for cuts in [], ${python(at)}:`,
    "    h, L = torch.zeros(2, dtype=torch.float64), []",
    `    for t in range(${forward.T}):`,
    `        h = ${activationCode(net)}(W_hx @ x[t] + W_hh @ (h.detach() if t in cuts else h) + b_h)`,
    "        z = W_yh @ h + b_y",
    `        L.append(${lossCode(net)})`,
    `    g, = torch.autograd.grad(${state.counted === "each" ? "sum(L)" : "L[-1]"}, W_hh)`,
    `    ${printOf(`(*g.flatten(), *(g * min(1, ${state.remedies_clip} / g.norm())).flatten())`, format)}`,
  ];
  return { code: code.join("\n"), prints: rows.map((row) => digits(row, format)).join("\n") };
}
