// Scene 5, eq. (10) for all losses: each pair (t, k) is one term, and the gradient is the sum of the triangle.
import { controls, equation, lead, numbersToChange } from "../components/blocks.js";
import { colourOf, legend } from "../components/decades.js";
import { el, pointer } from "../components/dom.js";
import {
  choosePair,
  countedChoice,
  earlierStepSlider,
  inputEditor,
  lengthSlider,
  lossStepSlider,
  weightEditor,
} from "../components/editors.js";
import { liveFormula, maths, numbersOf } from "../components/formula.js";
import { button, choices } from "../components/inputs.js";
import { networkDrawing } from "../components/network.js";
import { percent, show } from "../components/numbers.js";
import { predictFirst } from "../components/predict.js";
import { activationCode, digits, formatOf, lossCode, numbers, printOf } from "../components/pytorch.js";
import { differenceBadge, termsOf } from "../components/terms-of.js";
import { triangleTable } from "../components/triangle-table.js";
import { norm } from "../engine/matrix.js";
import { distance, sums, termNorms, terms } from "../engine/terms.js";
import { choice, namesOf } from "../shell/fields.js";
import { keptFor } from "../shell/kept.js";
import { results } from "../shell/model.js";
/** @import { Matrix, Page, Pair, Patch, Pointed, Program, Results, Scene, State, TriangleCell } from "../types.d.ts" */

const DECADES = 4; // from the lightest colour to the darkest
const WEIGHTS = { W_hx: "\\hx{W_{hx}}", W_hh: "\\hh{W_{hh}}", b_h: "b_h" };

/**
 * Which cells are added.
 * @typedef {object} SumOver
 * @property {string} name
 * @property {string} says the sum, in a formula
 * @property {(t: number, k: number, now: State) => boolean} has whether (t, k) is among the cells of the chosen sum
 * @property {"rows" | "columns" | "lags"} all where the sums stand
 * @property {(state: State) => number} of the chosen one among them
 * @property {(i: number, state: State) => { t: number, k: number }} pair that chooses the i-th sum
 * @property {(state: State) => string} means what the chosen sum is, in a formula
 */
/** @type {Record<"row" | "column" | "lag", SumOver>} */
const SUMS = {
  row: {
    name: "row t",
    says: "\\sum_{k=1}^{t}",
    has: (t, k, now) => t === now.t,
    all: "rows",
    of: ({ t }) => t,
    pair: (t, { k }) => ({ t, k: Math.min(k, t) }),
    means: ({ t, map_of }) => `= \\frac{∂L(${t})}{∂${WEIGHTS[map_of]}}, \\text{~the~gradient~of~one~loss}`,
  },
  column: {
    name: "column k",
    says: "\\sum_{t=k}^{T}",
    has: (t, k, now) => k === now.k,
    all: "columns",
    of: ({ k }) => k,
    pair: (k, { t }) => ({ t: Math.max(t, k), k }),
    means: ({ k }) => `\\text{what~the~copy~of~step~${k}~adds}`,
  },
  lag: {
    name: "lag t − k",
    says: "\\sum_{t-k}",
    has: (t, k, now) => t - k === now.t - now.k,
    all: "lags",
    of: ({ t, k }) => t - k,
    pair: (lag, { t }) => ({ t: Math.max(t, lag + 1), k: Math.max(t, lag + 1) - lag }),
    means: ({ t, k }) => `\\text{what~travels~${t - k}~${t - k === 1 ? "step" : "steps"}~back}`,
  },
};

export const fields = {
  map_of: choice("W_hh", namesOf(WEIGHTS)), // the parameter whose terms are shown
  map_sum: choice("row", namesOf(SUMS)), // the sums that are shown
};

/** @type {Scene} */
export const scene = { id: "map", order: 5, short: "Map", title: "The map of terms (t, k)", fields, mount, pytorch };

// What the scene shows; distance: of the sum of all terms from backpropagation, over all parameters.
const computed = keptFor((/** @type {State} */ state) => {
  const { net, forward, gradient } = results(state);
  const apart = namesOf(WEIGHTS).map((name) => {
    const each = terms(net, forward, name);
    return distance(sums(each).total, gradient[name], termNorms(each));
  });
  const all = terms(net, forward, state.map_of);
  const norms = termNorms(all);
  return { all, norms, scale: scaleOf(norms), sums: sums(all), distance: Math.max(...apart) };
});

/**
 * log₁₀ of the ends of the colours.
 * @type {(norms: Matrix) => { low: number, top: number }}
 */
function scaleOf(norms) {
  const finite = norms.flat().filter((size) => size > 0 && Number.isFinite(size));
  const top = finite.length ? Math.ceil(Math.log10(Math.max(...finite))) : 0;
  return { low: top - DECADES, top };
}

/** @type {Scene["mount"]} */
function mount(root, page) {
  const pointed = pointer(page, /** @type {Pair | null} */ (null));
  root.append(
    lead(
      "Each loss step t and each earlier step k give one term. The triangle shows how large each is: dark cells are small. " +
        "Its sum over all cells is the gradient.",
    ),
    el("div", { class: "map-and-sums" }, map(page, pointed), sumsPanel(page)),
    differenceBadge(page, "The sum of all cells", (state) => ({
      distance: computed(state).distance,
      matrices: namesOf(WEIGHTS).length,
    })),
    drawing(page, pointed),
    controls(lossStepSlider(page), earlierStepSlider(page), lengthSlider(page), countedChoice(page)),
    equation("The chosen cell", liveFormula(page, cellFormula)),
    equation("The chosen sum, and the sum of all", liveFormula(page, sumFormula), liveFormula(page, totalFormula)),
    question(page),
    ...numbersToChange(weightEditor(page, "hx"), weightEditor(page, "hh"), weightEditor(page, "yh"), inputEditor(page)),
  );
  page.steps(nextCell);
}

/** @type {(page: Page) => HTMLElement} */
function question(page) {
  return predictFirst(page, {
    question: "A sequence has 100 steps and a loss at each. How many terms (t, k) has the gradient?",
    options: ["100", "5050", "10 000"],
    right: 1,
    why: el(
      "p",
      {},
      "The loss of step t has t earlier steps: 1 + 2 + … + 100 = 100 · 101 / 2. Backpropagation adds all of them up in " +
        "one walk of 100 steps, because all losses after step k share the way back from it: it pays T, not T².",
    ),
  });
}

/**
 * The next cell of the walk, or the one before: back through k, then the next loss.
 * @type {(state: State, by: number) => Patch}
 */
function nextCell({ t, k, x }, by) {
  if (by > 0) return k > 1 ? { k: k - 1 } : t < x.length ? { t: t + 1, k: t + 1 } : {};
  return k < t ? { k: k + 1 } : t > 1 ? { t: t - 1, k: 1 } : {};
}

/**
 * The map of the terms with its legend.
 * @type {(page: Page, pointed: Pointed<Pair | null>) => HTMLElement}
 */
function map(page, pointed) {
  const table = triangleTable(page, {
    label: "The size of each term (t, k)",
    read: ({ x, t, k }) => ({ T: x.length, t, k }),
    choose: (t, k) => page.set({ t, k }),
    point: pointed.at,
    cell: mapCell,
  });
  const of = termsOf(page, { field: "map_of", options: WEIGHTS, chosen: ({ map_of }) => map_of });
  const W_hh = maths(WEIGHTS.W_hh);
  const note = ["Size: the root of the sum of squares. Those of ", W_hh, " at k = 1 are zero, since h(0) = 0."];
  return el("div", {}, of, table, colourKey(page), el("small", {}, note));
}

/** @type {(t: number, k: number, state: State) => TriangleCell} */
function mapCell(t, k, state) {
  const { norms, scale } = computed(state);
  const size = norms[t][k];
  const coloured = size > 0 && Number.isFinite(size);
  return {
    strong: show(size, 2),
    label: `t ${t}, k ${k}: size ${show(size)}`,
    among: SUMS[state.map_sum].has(t, k, state),
    colour: coloured ? colourOf((Math.log10(size) - scale.low) / (scale.top - scale.low)) : "",
  };
}

/** @type {(page: Page) => HTMLElement} */
function colourKey(page) {
  const node = el("div");
  let before = "";
  page.follow((state) => {
    const { low, top } = computed(state).scale;
    if (`${low}` === before) return;
    before = `${low}`;
    node.replaceChildren(legend({ low, top, below: true }));
  });
  return node;
}

/**
 * The sums over rows, columns or lags as bars; each chooses its cells.
 * @type {(page: Page) => HTMLElement}
 */
function sumsPanel(page) {
  const body = el("tbody");
  /** @type {ReturnType<typeof sumRow>[]} */
  let rows = [];
  let before = "";
  page.follow((state) => {
    const { all, of } = SUMS[state.map_sum];
    const sizes = computed(state).sums[all].map((sum) => (sum ? norm(sum) : null));
    const first = sizes[0] === null ? 1 : 0;
    const now = `${all} ${sizes.length}`;
    if (now !== before) {
      rows = sizes.slice(first).map((_, n) => sumRow(page, SUMS[state.map_sum], first + n));
      body.replaceChildren(...rows.map(({ node }) => node));
    }
    before = now;
    const shown = sizes.slice(first).map(Number);
    const largest = Math.max(...shown.filter(Number.isFinite), Number.MIN_VALUE);
    rows.forEach((row, n) => row.update(first + n === of(state), shown[n], largest));
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

/**
 * The row of the i-th sum: a button, a bar, its size.
 * @type {(page: Page, over: SumOver, i: number) =>
 *   { node: HTMLElement, update: (chosen: boolean, size: number, largest: number) => void }}
 */
function sumRow(page, { name, pair }, i) {
  const label = { "aria-label": `${name} ${i}` };
  const choose = button(String(i), () => page.set((state) => pair(i, state)), label);
  const [text, bar] = [el("span"), el("i", { "aria-hidden": "true" })];
  const node = el("tr", {}, el("th", { scope: "row" }, choose), el("td", {}, bar), el("td", {}, text));

  /** @type {(chosen: boolean, size: number, largest: number) => void} */
  function update(chosen, size, largest) {
    choose.setAttribute("aria-pressed", String(chosen));
    text.textContent = show(size);
    bar.style.width = Number.isFinite(size) ? percent(size, largest) : "100%";
  }

  return { node, update };
}

/** @type {(page: Page, pointed: Pointed<Pair | null>) => HTMLElement} */
function drawing(page, pointed) {
  return networkDrawing(
    page,
    (state, { forward }) => {
      const [t, k] = pointed.now() ?? [state.t, state.k];
      const steps = Array.from({ length: t - k + 1 }, (_, i) => k + i);
      const way = steps.flatMap((i) => (i > k ? [`h${i}`, `hh${i}`] : [`h${i}`]));
      return {
        T: forward.T,
        losses: true,
        counts: forward.counts,
        lit: new Set([`loss${t}`, `L${t}`, `y${t}`, `yh${t}`, ...way, ...ENDS[state.map_of](k)]),
        label: `The unfolded network; the way of the term from the loss of step ${t} to step ${k} is lit`,
      };
    },
    choosePair(page),
  );
}

// Where the weights of step k are.
/** @type {Record<keyof typeof WEIGHTS, (k: number) => string[]>} */
const ENDS = { W_hx: (k) => [`hx${k}`, `x${k}`], W_hh: (k) => [`hh${k}`, `h${k - 1}`], b_h: () => [] };

/** @type {(t: number | "t", k: number | "k", of: keyof typeof WEIGHTS) => string} */
const termName = (t, k, of) =>
  `\\frac{∂L(${t})}{∂h(${t})} \\frac{∂h(${t})}{∂h(${k})} \\frac{∂^+h(${k})}{∂${WEIGHTS[of]}}`;

/** @type {(state: State) => string[]} */
function cellFormula(state) {
  const { t, k, map_of } = state;
  const { all, norms } = computed(state);
  return [termName(t, k, map_of), `= ${numbersOf(all[t][k])},`, `\\text{size~} ${show(norms[t][k])}`];
}

/** @type {(state: State) => string[]} */
function sumFormula(state) {
  const { says, all, of, means } = SUMS[state.map_sum];
  const chosen = computed(state).sums[all][of(state)];
  return [says, termName("t", "k", state.map_of), `= ${numbersOf(chosen)},`, means(state)];
}

/** @type {(state: State) => string[]} */
function totalFormula(state) {
  return [
    `\\frac{∂L}{∂${WEIGHTS[state.map_of]}} =`,
    "\\sum_{t=1}^{T} \\sum_{k=1}^{t}",
    termName("t", "k", state.map_of),
    `= ${numbersOf(computed(state).sums.total)},`,
    "\\text{~by~backpropagation~}",
    numbersOf(results(state).gradient[state.map_of]),
  ];
}

/**
 * The map as, for each loss, the norms of the gradients at the copies of the weights.
 * @type {(state: State, results: Results) => Program}
 */
function pytorch(state, { net, forward }) {
  const { map_of: of } = state;
  const rows = computed(state)
    .norms.slice(1)
    .map((row) => row.slice(1));
  const format = formatOf(...rows);
  /** @type {(name: string) => string} */
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
    `    ${printOf("(term.norm() for term in terms)", format)}`,
  ];
  const printed = state.counted === "each" ? rows : rows.slice(-1);
  return { code: code.join("\n"), prints: printed.map((row) => digits(row, format)).join("\n") };
}
