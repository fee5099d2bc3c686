// Scene 5, lecture line 10 for all losses: each pair (t, k) is one term, and the gradient is the sum of the triangle.
import { colourOf, legend } from "../components/decades.js";
import { el } from "../components/dom.js";
import {
  choosePair,
  countedChoice,
  earlierStepSlider,
  inputEditor,
  lengthSlider,
  lossStepSlider,
  weightEditor,
} from "../components/editors.js";
import { liveFormula, maths, matrixText } from "../components/formula.js";
import { choices } from "../components/inputs.js";
import { networkDrawing } from "../components/network.js";
import { show } from "../components/numbers.js";
import { predictFirst } from "../components/predict.js";
import { PRINT, activationCode, digits, formatOf, lossCode, numbers } from "../components/pytorch.js";
import { differenceBadge, termsOf } from "../components/terms-of.js";
import { triangleTable } from "../components/triangle-table.js";
import { norm } from "../engine/matrix.js";
import { distance, sums, termNorms, terms } from "../engine/terms.js";
import { choice } from "../shell/fields.js";
import { keptFor } from "../shell/kept.js";
import { results } from "../shell/model.js";

const DECADES = 4; // from the lightest colour to the darkest
const WEIGHTS = { W_hx: "\\hx{W_{hx}}", W_hh: "\\hh{W_{hh}}", b_h: "b_h" };
// Which cells are added: their name, whether (t, k) is one of them, where the sums stand, and the pair that chooses the i-th.
const SUMS = {
  row: {
    name: "row t",
    says: "\\sum_{k=1}^{t}",
    has: (t, k, now) => t === now.t,
    of: ({ t }) => t,
    pair: (t, { k }) => ({ t, k: Math.min(k, t) }),
    all: "rows",
  },
  column: {
    name: "column k",
    says: "\\sum_{t=k}^{T}",
    has: (t, k, now) => k === now.k,
    of: ({ k }) => k,
    pair: (k, { t }) => ({ t: Math.max(t, k), k }),
    all: "columns",
  },
  lag: {
    name: "lag t − k",
    says: "\\sum_{t-k}",
    has: (t, k, now) => t - k === now.t - now.k,
    of: ({ t, k }) => t - k,
    pair: (lag, { t }) => ({ t: Math.max(t, lag + 1), k: Math.max(t, lag + 1) - lag }),
    all: "lags",
  },
};

export const scene = {
  id: "map",
  order: 5,
  short: "Map",
  title: "The map of terms (t, k)",
  fields: {
    map_of: choice("W_hh", Object.keys(WEIGHTS)), // the parameter whose terms are shown
    map_sum: choice("row", Object.keys(SUMS)), // the sums that are shown
  },
  mount,
  pytorch,
};

// {all: the terms, norms, scale, sums: {rows, columns, lags, total}, distance: from backpropagation, over all parameters}
const computed = keptFor((state) => {
  const { net, forward, gradient } = results(state);
  const apart = (each, name) => distance(sums(each).total, gradient[name], termNorms(each));
  const all = terms(net, forward, state.map_of);
  const norms = termNorms(all);
  return {
    all,
    norms,
    scale: scaleOf(norms),
    sums: sums(all),
    distance: Math.max(...Object.keys(WEIGHTS).map((name) => apart(terms(net, forward, name), name))),
  };
});

// log₁₀ of the ends of the colours.
function scaleOf(norms) {
  const finite = norms.flat().filter((size) => size > 0 && size < Infinity);
  const top = finite.length ? Math.ceil(Math.log10(Math.max(...finite))) : 0;
  return { low: top - DECADES, top };
}

function mount(root, page) {
  let pointed = null; // the pair under the mouse
  const shown = (state) => pointed ?? { t: state.t, k: state.k };
  const point = (t, k) => {
    pointed = t === null ? null : { t, k };
    page.refresh();
  };
  root.append(
    el(
      "p",
      { class: "lead" },
      "Each loss step t and each earlier step k give one term. The triangle shows how large each is: dark cells are small. " +
        "Its sum over all cells is the gradient.",
    ),
    el("div", { class: "map-and-sums" }, map(page, point), sumsPanel(page)),
    differenceBadge(page, "The sum of all cells", (state) => ({
      distance: computed(state).distance,
      matrices: Object.keys(WEIGHTS).length,
    })),
    drawing(page, shown),
    el("div", { class: "controls" }, lossStepSlider(page), earlierStepSlider(page), lengthSlider(page), countedChoice(page)),
    el("div", { class: "equation" }, el("h3", {}, "The chosen cell"), liveFormula(page, cellFormula)),
    el(
      "div",
      { class: "equation" },
      el("h3", {}, "The chosen sum, and the sum of all"),
      liveFormula(page, sumFormula),
      liveFormula(page, totalFormula),
    ),
    predictFirst(page, {
      question: "A sequence has 100 steps and a loss at each. How many terms (t, k) has the gradient?",
      options: ["100", "5050", "10 000"],
      right: 1,
      why: el(
        "p",
        {},
        "The loss of step t has t earlier steps: 1 + 2 + … + 100 = 100 · 101 / 2. Backpropagation adds all of them up in " +
          "one walk of 100 steps, because all losses after step k share the way back from it: it pays T, not T².",
      ),
    }),
    el("h3", {}, "The numbers to change"),
    el(
      "div",
      { class: "matrices" },
      weightEditor(page, "hx"),
      weightEditor(page, "hh"),
      weightEditor(page, "yh"),
      inputEditor(page),
    ),
  );
  page.steps(nextCell);
}

// The next cell of the walk: back through k, then the next loss.
function nextCell({ t, k, x }, by) {
  if (by > 0) return k > 1 ? { k: k - 1 } : t < x.length ? { t: t + 1, k: t + 1 } : {};
  return k < t ? { k: k + 1 } : t > 1 ? { t: t - 1, k: 1 } : {};
}

function map(page, point) {
  const table = triangleTable(page, {
    label: "The size of each term (t, k)",
    read: ({ x, t, k }) => ({ T: x.length, t, k }),
    choose: (t, k) => page.set({ t, k }),
    point,
    cell(t, k, state) {
      const {
        norms,
        scale: { low, top },
      } = computed(state);
      const size = norms[t][k];
      return {
        strong: show(size, 2),
        label: `t ${t}, k ${k}: size ${show(size)}`,
        among: SUMS[state.map_sum].has(t, k, state),
        colour: size > 0 && size < Infinity ? colourOf((Math.log10(size) - low) / (top - low)) : "",
      };
    },
  });
  const key = el("div");
  let before = "";
  page.follow((state) => {
    const { low, top } = computed(state).scale;
    if (`${low}` === before) return;
    before = `${low}`;
    key.replaceChildren(legend({ low, top, below: true }));
  });
  const of = termsOf(page, { field: "map_of", options: WEIGHTS, chosen: ({ map_of }) => map_of });
  return el(
    "div",
    {},
    of,
    table,
    key,
    el(
      "small",
      {},
      "Size: the root of the sum of squares. Those of ",
      maths(WEIGHTS.W_hh),
      " at k = 1 are zero, since h(0) = 0.",
    ),
  );
}

// The sums over rows, columns or lags as bars; each chooses its cells.
function sumsPanel(page) {
  const body = el("tbody");
  let rows = [];
  let before = "";

  function build(first, count, name) {
    rows = Array.from({ length: count }, (_, n) => {
      const i = first + n;
      const choose = el(
        "button",
        {
          type: "button",
          onclick: () => page.set((state) => SUMS[state.map_sum].pair(i, state)),
          "aria-label": `${name} ${i}`,
        },
        i,
      );
      const [text, bar] = [el("span"), el("i", { "aria-hidden": "true" })];
      return {
        i,
        choose,
        text,
        bar,
        node: el("tr", {}, el("th", { scope: "row" }, choose), el("td", {}, bar), el("td", {}, text)),
      };
    });
    body.replaceChildren(...rows.map(({ node }) => node));
  }

  page.follow((state) => {
    const { all, of, name } = SUMS[state.map_sum];
    const sizes = computed(state).sums[all].map((sum) => (sum ? norm(sum) : null));
    const first = sizes[0] === null ? 1 : 0;
    const now = `${all} ${sizes.length}`;
    if (now !== before) build(first, sizes.length - first, name);
    before = now;
    const largest = Math.max(...sizes.filter(Number.isFinite), Number.MIN_VALUE);
    for (const { i, choose, text, bar } of rows) {
      choose.setAttribute("aria-pressed", String(i === of(state)));
      text.textContent = show(sizes[i]);
      bar.style.width = Number.isFinite(sizes[i]) ? `${(100 * sizes[i]) / largest}%` : "100%";
    }
  });
  const options = Object.fromEntries(Object.entries(SUMS).map(([value, { name }]) => [value, name]));
  return el(
    "div",
    { class: "sums" },
    choices(page, { label: "Sum over each", field: "map_sum", options }),
    el("table", {}, body),
    el("small", {}, "Size of each sum; terms may cancel, so it can be smaller than its cells."),
  );
}

function drawing(page, shown) {
  return networkDrawing(
    page,
    (state, { forward }) => {
      const { t, k } = shown(state);
      const steps = Array.from({ length: t - k + 1 }, (_, i) => k + i);
      const lit = [
        `loss${t}`,
        `L${t}`,
        `y${t}`,
        `yh${t}`,
        ...steps.flatMap((i) => (i > k ? [`h${i}`, `hh${i}`] : [`h${i}`])),
        ...ENDS[state.map_of](k),
      ];
      return {
        T: forward.T,
        losses: true,
        counts: forward.counts,
        lit: new Set(lit),
        label: `The unfolded network; the way of the term from the loss of step ${t} to step ${k} is lit`,
      };
    },
    choosePair(page),
  );
}

// Where the weights of step k are.
const ENDS = { W_hx: (k) => [`hx${k}`, `x${k}`], W_hh: (k) => [`hh${k}`, `h${k - 1}`], b_h: () => [] };

const numbersOf = (values) => matrixText(values, show);
const termName = (t, k, of) => `\\frac{∂L(${t})}{∂h(${t})} \\frac{∂h(${t})}{∂h(${k})} \\frac{∂^+h(${k})}{∂${WEIGHTS[of]}}`;

function cellFormula(state) {
  const { t, k, map_of } = state;
  const { all, norms } = computed(state);
  return [termName(t, k, map_of), `= ${numbersOf(all[t][k])},`, `\\text{size~} ${show(norms[t][k])}`];
}

const MEANS = {
  row: ({ t, map_of }) => `= \\frac{∂L(${t})}{∂${WEIGHTS[map_of]}}, \\text{~the~gradient~of~one~loss}`,
  column: ({ k }) => `\\text{what~the~copy~of~step~${k}~adds}`,
  lag: ({ t, k }) => `\\text{what~travels~${t - k}~${t - k === 1 ? "step" : "steps"}~back}`,
};

function sumFormula(state) {
  const { says, all, of } = SUMS[state.map_sum];
  return [
    says,
    termName("t", "k", state.map_of),
    `= ${numbersOf(computed(state).sums[all][of(state)])},`,
    MEANS[state.map_sum](state),
  ];
}

function totalFormula(state) {
  const {
    sums: { total },
  } = computed(state);
  const left = `\\frac{∂L}{∂${WEIGHTS[state.map_of]}} =`;
  return [
    left,
    "\\sum_{t=1}^{T} \\sum_{k=1}^{t}",
    termName("t", "k", state.map_of),
    `= ${numbersOf(total)},`,
    "\\text{~by~backpropagation~}",
    numbersOf(results(state).gradient[state.map_of]),
  ];
}

// The map: for each loss the gradients at the copies of the weights.
function pytorch(state, { net, forward }) {
  const { map_of: of } = state;
  const rows = computed(state)
    .norms.slice(1)
    .map((row) => row.slice(1));
  const format = formatOf(...rows);
  const use = (name) => (name === of ? "copies[t]" : name);
  const counted = state.counted === "each" ? `range(${forward.T})` : `[${forward.T - 1}]`;
  const code = [
    ...numbers(state, { net }),
    "h, copies, L = torch.zeros(2, dtype=torch.float64), [], []",
    `for t in range(${forward.T}):`,
    `    copies.append(${of}.clone().requires_grad_())  # one copy of the shared weights for each step`,
    `    h = ${activationCode(net)}(${use("W_hx")} @ x[t] + ${use("W_hh")} @ h + ${use("b_h")})`,
    "    z = W_yh @ h + b_y",
    `    L.append(${lossCode(net)})`,
    `for t in ${counted}:`,
    "    terms = torch.autograd.grad(L[t], copies[:t + 1], retain_graph=True)",
    `    ${PRINT("(term.norm() for term in terms)", format)}`,
  ];
  const printed = state.counted === "each" ? rows : rows.slice(-1);
  return { code: code.join("\n"), prints: printed.map((row) => digits(row, format)).join("\n") };
}
