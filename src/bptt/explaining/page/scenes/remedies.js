// Scene 7: what is done against lines 11 and 12, measured on the spot; and lecture line 14, the LSTM.
import { arrows } from "../components/arrows.js";
import { el } from "../components/dom.js";
import { lengthSlider, weightEditor } from "../components/editors.js";
import { formula, liveFormula, maths, matrixText } from "../components/formula.js";
import { button, slider } from "../components/inputs.js";
import { logChart } from "../components/logchart.js";
import { logSlider } from "../components/logslider.js";
import { networkDrawing } from "../components/network.js";
import { show, showPower } from "../components/numbers.js";
import { predictFirst } from "../components/predict.js";
import { PRINT, activationCode, digits, formatOf, lossCode, numbers, python } from "../components/pytorch.js";
import { sentence } from "../components/sentence.js";
import { valves } from "../components/valves.js";
import { horizon, reach } from "../engine/growth.js";
import { norm } from "../engine/matrix.js";
import { cellPath, forwardOf, racers } from "../engine/race.js";
import { clip, cosine, truncate, uncut } from "../engine/remedies.js";
import { integer, number } from "../shell/fields.js";
import { keptFor, keptWhile } from "../shell/kept.js";
import { results } from "../shell/model.js";

const [H, D, SHARE] = [4, 2, 0.01]; // units and inputs of the race; the horizon is where this share is left

export const scene = {
  id: "remedies",
  order: 7,
  short: "Remedies",
  title: "Remedies, measured",
  fields: {
    remedies_clip: number(0.4, { min: 0.001, max: 1000 }), // the largest norm
    remedies_cuts: integer(4, { min: 0, max: 63 }), // bit i − 1: the edge from h(i − 1) to h(i) is cut on the way back
    remedies_bias: number(1, { min: -6, max: 8 }), // the forget gates' bias
    remedies_input: number(1, { min: 0, max: 5 }), // inputs are uniform in ± this
    remedies_T: integer(50, { min: 2, max: 50 }),
    remedies_seed: integer(1, { min: 1, max: 9999 }),
  },
  mount,
  pytorch,
};

const isCut = ({ remedies_cuts }, i) => Boolean(remedies_cuts & (1 << (i - 1)));

// On the network that all scenes share: the gradient of W_hh clipped, and cut.
const shared = keptFor((state) => {
  const { forward, gradient, terms } = results(state);
  const cuts = Array.from({ length: forward.T + 1 }, (_, i) => i > 1 && isCut(state, i));
  const cut = truncate(terms, uncut(cuts));
  const whole = terms.slice(1).flatMap((row, i) => row.slice(1).map((_, j) => [i + 1, j + 1]));
  return { gradient: gradient.W_hh, cuts, cut, all: whole.length, left: whole.filter(([t, k]) => uncut(cuts)(t, k)).length };
});

// The race: what reaches back how far. The RNNs stay as they are when only the forget bias changes.
const networks = ({ remedies_seed: seed, remedies_T: T, remedies_input: size, remedies_bias: forgetBias }) =>
  racers({ seed, H, D, T, size, forgetBias });

const plainReach = keptWhile(
  ({ remedies_seed, remedies_T, remedies_input }) => `${remedies_seed} ${remedies_T} ${remedies_input}`,
  (state) => {
    const { rnn, orthogonal, x } = networks(state);
    return { rnn: reach(forwardOf(rnn, x)), orthogonal: reach(forwardOf(orthogonal, x)) };
  },
);

const race = keptFor((state) => {
  const { lstm, x } = networks(state);
  const forward = forwardOf(lstm, x);
  return {
    ...plainReach(state),
    lstm: reach(forward),
    path: cellPath(forward),
    forget: forward.steps.slice(1).map(({ f }) => f),
  };
});

function mount(root, page) {
  root.append(
    el(
      "p",
      { class: "lead" },
      "Exploding gradients are clipped. Vanishing ones need another way back: a start that keeps lengths, or a cell with a path of its own.",
    ),
    el("h3", {}, "Clipping: the arrow gets shorter, its direction stays"),
    el(
      "div",
      { class: "clipping" },
      arrows(page, clipped),
      el(
        "div",
        {},
        logSlider(page, { label: "Largest norm", field: "remedies_clip", min: 0.01, max: 100 }),
        liveFormula(page, clipFormula),
        says(page, clipSaid),
      ),
    ),
    el("h3", {}, "Truncation: cut the way back"),
    cutDrawing(page),
    cutButtons(page),
    el("div", { class: "controls" }, lengthSlider(page)),
    liveFormula(page, cutFormula),
    says(page, cutSaid),
    el("div", { class: "matrices" }, weightEditor(page, "hx"), weightEditor(page, "hh"), weightEditor(page, "yh")),
    el("h3", {}, "An orthogonal start, and the LSTM, beside the plain RNN"),
    el(
      "p",
      {},
      `Three untrained networks of ${H} units on the same inputs, with weights uniform in ±1/√${H}, as PyTorch starts them. How strongly does h(T) depend on the state some steps before?`,
    ),
    el(
      "div",
      { class: "presets" },
      Object.entries(PRESETS).map(([name, patch]) => button(name, () => page.set(patch))),
    ),
    logChart(page, chart),
    el("h3", {}, "The LSTM’s valves: the forget gates f(t), full is open"),
    valves(page, (state) => ({ gates: race(state).forget, label: gatesLabel(state) })),
    el(
      "div",
      { class: "controls" },
      slider(page, {
        label: "Forget-gate bias",
        min: -6,
        max: 8,
        step: 0.1,
        read: ({ remedies_bias }) => remedies_bias,
        write: (remedies_bias) => ({ remedies_bias }),
      }),
      slider(page, {
        label: "Inputs ±",
        min: 0,
        max: 5,
        step: 0.1,
        read: ({ remedies_input }) => remedies_input,
        write: (remedies_input) => ({ remedies_input }),
      }),
      slider(page, {
        label: "Steps T",
        min: 2,
        max: 50,
        read: ({ remedies_T }) => remedies_T,
        write: (remedies_T) => ({ remedies_T }),
        say: String,
      }),
      button("Other weights", () => page.set(({ remedies_seed }) => ({ remedies_seed: (remedies_seed % 9999) + 1 }))),
    ),
    says(page, raceSaid),
    el(
      "div",
      { class: "equation" },
      el("h3", {}, "The c path"),
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
    ),
    predict(page),
  );
  page.steps(({ remedies_bias }, by) => ({ remedies_bias: Math.min(8, Math.max(-6, remedies_bias + by)) }));
}

const PRESETS = {
  "Forget bias 0": { remedies_bias: 0, remedies_input: 1, remedies_T: 50 },
  "Forget bias 4": { remedies_bias: 4, remedies_input: 1, remedies_T: 50 },
  "The LSTM vanishes too": { remedies_bias: -3, remedies_input: 1, remedies_T: 50 },
};

function predict(page) {
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

const says = (page, make) => sentence(page, make, { class: "said", role: "status" });

const numbersOf = (values) => matrixText(values, show);

// Clipping --------------------------------------------------------------------------------------

const byNumber = (gradient, limit) => gradient.map((row) => row.map((value) => Math.max(-limit, Math.min(limit, value))));

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

// Why a gradient has no direction that could be kept, or "".
function withoutDirection(gradient) {
  const size = norm(gradient);
  if (!Number.isFinite(size)) return "The gradient is infinite or NaN: it has no direction that could be kept.";
  return size > 0 ? "" : "The gradient is zero: it has no direction that could be kept.";
}

function clipSaid(state) {
  const { gradient } = shared(state);
  const { factor } = clip(gradient, state.remedies_clip);
  if (withoutDirection(gradient)) return withoutDirection(gradient);
  const other = byNumber(gradient, state.remedies_clip / 2);
  const turned = `Limiting each number by itself to ±${show(state.remedies_clip / 2)} (dashed) turns it by ${show((Math.acos(cosine(gradient, other)) * 180) / Math.PI, 1)}°.`;
  return `Each row is an arrow, the weights into h₁ and into h₂: grey before, orange after. ${factor < 1 ? "By norm it is not turned at all." : "The norm is within the limit: nothing is changed."} ${turned}`;
}

// Truncation ------------------------------------------------------------------------------------

const toggled = (state, i) => ({ remedies_cuts: state.remedies_cuts ^ (1 << (i - 1)) });

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
    (key, i, what) => what === "click" && key.startsWith("hh") && i > 1 && page.set((state) => toggled(state, i)),
  );
}

function cutButtons(page) {
  const host = el("div", { class: "cuts", role: "group", "aria-label": "Cuts" });
  let buttons = [];
  page.follow((state) => {
    const {
      forward: { T },
    } = results(state);
    if (buttons.length !== T - 1) {
      buttons = Array.from({ length: T - 1 }, (_, n) =>
        button(`✂ ${n + 1} | ${n + 2}`, () => page.set((now) => toggled(now, n + 2)), {
          "aria-label": `Cut between h(${n + 1}) and h(${n + 2})`,
        }),
      );
      host.replaceChildren(...buttons);
    }
    buttons.forEach((each, n) => each.setAttribute("aria-pressed", String(isCut(state, n + 2))));
  });
  return host;
}

function cutFormula(state) {
  const { cut } = shared(state);
  return [
    `g = ${numbersOf(cut.full)},`,
    `g_{\\fn{cut}} = \\hh{${numbersOf(cut.kept)}},`,
    `\\frac{‖g - g_{\\fn{cut}}‖}{‖g‖} = ${show(cut.lost)},`,
    `\\fn{cos}(g, g_{\\fn{cut}}) = ${show(cut.cosine)}`,
  ];
}

function cutSaid(state) {
  const { cut, all, left } = shared(state);
  if (left === all)
    return `All ${all} terms are there. Cut an edge: the forward pass stays as it is, the gradient loses every term that crosses the cut.`;
  const lost = `${all - left} of ${all} terms cross a cut and are lost.`;
  if (withoutDirection(cut.full)) return `${lost} ${withoutDirection(cut.full)}`;
  return `${lost} Together they have ${show(100 * cut.lost, 1)} % of the gradient’s norm. The cosine says how far the direction is still right.`;
}

// The race --------------------------------------------------------------------------------------

function chart(state) {
  const { rnn, orthogonal, lstm, path } = race(state);
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

function raceSaid(state) {
  const far = (logs) => {
    const lag = horizon(logs, SHARE);
    return lag === null ? `more than ${state.remedies_T - 1}` : `${lag}`;
  };
  const { rnn, orthogonal, lstm } = race(state);
  return `Lag at which less than 1 % is left: ${far(rnn)} in the RNN, ${far(orthogonal)} with the orthogonal start, ${far(lstm)} in the LSTM.`;
}

function gatesLabel(state) {
  const all = race(state).forget.flat();
  return `Forget gates from ${show(Math.min(...all), 2)} to ${show(Math.max(...all), 2)}, mean ${show(all.reduce((a, b) => a + b) / all.length, 2)}`;
}

// Without cuts and with them: the gradient of W_hh, and the same clipped.
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
    `    ${PRINT(`(*g.flatten(), *(g * min(1, ${state.remedies_clip} / g.norm())).flatten())`, format)}`,
  ];
  return { code: code.join("\n"), prints: rows.map((row) => digits(row, format)).join("\n") };
}
