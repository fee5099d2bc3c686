// Scene 4, eq. (10) and (11): the formula is the control. A factor that is pointed at lights its edges and shows its
// numbers.
import { controls, equation, lead, numbersToChange } from "../components/blocks.js";
import { el, pointer } from "../components/dom.js";
import {
  activationChoice,
  choosePair,
  earlierStepSlider,
  headChoice,
  lossStepSlider,
  networkEditors,
  targetEditors,
} from "../components/editors.js";
import { liveFormula, maths, numbersOf } from "../components/formula.js";
import { button } from "../components/inputs.js";
import { networkDrawing } from "../components/network.js";
import { percent, show } from "../components/numbers.js";
import { activationCode, digits, formatOf, lossCode, numbers, printOf } from "../components/pytorch.js";
import { sentence } from "../components/sentence.js";
import { add, norm, outer } from "../engine/matrix.js";
import { singularValues } from "../engine/svd.js";
import { chain, factors, jacobian, walkBack } from "../engine/terms.js";
import { choice, namesOf } from "../shell/fields.js";
import { keptFor } from "../shell/kept.js";
import { results } from "../shell/model.js";
/** @import { Matrix, Page, Pointed, Program, Results, Scene, State, Vector } from "../types.d.ts" */

const W = "\\hh{W_{hh}}";

// Eq. (10) factor by factor: how each is written, how it is called, and which parts of the drawing it is.
/** @type {Record<Factor, { text: string, name: string, parts: (t: number, k: number) => string[] }>} */
const FACTORS = {
  lossByY: { text: "\\frac{∂L(t)}{∂y(t)}", name: "loss by output", parts: (t) => [`loss${t}`, `L${t}`, `y${t}`] },
  yByH: { text: "\\frac{∂y(t)}{∂h(t)}", name: "output by hidden state", parts: (t) => [`yh${t}`, `y${t}`, `h${t}`] },
  hByH: { text: "\\frac{∂h(t)}{∂h(k)}", name: "hidden state by an earlier one", parts: (t, k) => between(k, t) },
  immediate: {
    text: `\\frac{∂^+h(k)}{∂${W}}`,
    name: "immediate derivative",
    parts: (t, k) => [`hh${k}`, `h${k}`, `h${k - 1}`],
  },
};

/** @typedef {"lossByY" | "yByH" | "hByH" | "immediate"} Factor */

export const fields = {
  gradient_factor: choice("", ["", ...namesOf(FACTORS)]), // the factor that stays lit
};

/** @type {Scene} */
export const scene = {
  id: "gradient",
  order: 4,
  short: "Gradient",
  title: "The gradient, factor by factor",
  fields,
  mount,
  pytorch,
};

/**
 * Keys of the recurrent edges from h(k) to h(t), and of what they join.
 * @type {(k: number, t: number) => string[]}
 */
function between(k, t) {
  const steps = Array.from({ length: t - k + 1 }, (_, i) => k + i);
  return [...steps.map((i) => `h${i}`), ...steps.slice(1).map((i) => `hh${i}`)];
}

/**
 * What the scene shows of one loss step. rows: for each k from t down to 1; sum: Σ_k of their terms.
 * @typedef {{ k: number, chain: Matrix, dState: Vector, term: Matrix }} Row
 */
const computed = keptFor((/** @type {State} */ state) => {
  const { net, forward } = results(state);
  /** @type {Row[]} */
  const rows = [];
  walkBack(net, forward, state.t, (k, dNet, dState) => {
    rows.push({ k, chain: chain(forward, state.t, k), dState, term: outer(dNet, forward.steps[k].before) });
  });
  return {
    rows,
    sum: rows.map(({ term }) => term).reduce((a, b) => add(a, b)),
    factors: factors(net, forward, state.t, state.k),
  };
});

/** @type {Scene["mount"]} */
function mount(root, page) {
  const pointed = pointer(page, /** @type {Factor | ""} */ (""));
  /** @type {(state: State) => Factor | ""} */
  const shown = (state) => pointed.now() || state.gradient_factor;
  root.append(
    lead(
      "The gradient of one loss is a sum over all earlier steps k, and each term is a product along the way back. " +
        "Point at a factor: its edges light up, and its numbers stand below.",
    ),
    formulaOfFactors(page, pointed),
    liveFormula(page, (state) => numbersOfFactor(shown(state), state)),
    drawing(page, shown),
    controls(lossStepSlider(page), earlierStepSlider(page), walkButtons(page)),
    equation("Back from t to k, one Jacobian at a time", liveFormula(page, product), walkTable(page)),
    equation(
      "The term of this k, and the sum over all k",
      liveFormula(page, term),
      liveFormula(page, sum),
      sentence(page, counts, { class: "said" }),
    ),
    ...numbersToChange(networkEditors(page), targetEditors(page)),
    controls(activationChoice(page), headChoice(page)),
    el("p", {}, "In practice nobody derives this by hand: automatic differentiation does it, as in this program."),
  );
  page.steps(({ t, k }, by) => ({ k: Math.min(t, Math.max(1, k - by)) }));
}

/**
 * Eq. (10) with its factors as buttons.
 * @type {(page: Page, pointed: Pointed<Factor | "">) => HTMLElement}
 */
function formulaOfFactors(page, pointed) {
  return el(
    "div",
    { class: "line-10" },
    maths(`\\frac{∂L(t)}{∂${W}} =`),
    factorButton(page, "lossByY", pointed),
    factorButton(page, "yByH", pointed),
    maths("\\sum_{k=1}^{t}"),
    factorButton(page, "hByH", pointed),
    factorButton(page, "immediate", pointed),
  );
}

/** @type {(page: Page, name: Factor, pointed: Pointed<Factor | "">) => HTMLElement} */
function factorButton(page, name, pointed) {
  const pin = () => page.set(({ gradient_factor }) => ({ gradient_factor: gradient_factor === name ? "" : name }));
  const node = button(maths(FACTORS[name].text), pin, {
    class: "factor",
    "aria-label": FACTORS[name].name,
    ...pointed.on(name),
  });
  page.follow(({ gradient_factor }) => node.setAttribute("aria-pressed", String(gradient_factor === name)));
  return node;
}

/** @type {(page: Page, shown: (state: State) => Factor | "") => HTMLElement} */
function drawing(page, shown) {
  return networkDrawing(
    page,
    (state, { forward }) => {
      const { t, k } = state;
      const name = shown(state);
      const parts = (name ? [name] : namesOf(FACTORS)).flatMap((factor) => FACTORS[factor].parts(t, k));
      return {
        T: forward.T,
        losses: true,
        counts: forward.counts,
        lit: new Set(parts),
        label: `The unfolded network; lit: ${name ? FACTORS[name].name : "the way"} from the loss of step ${t} back to step ${k}`,
      };
    },
    choosePair(page),
  );
}

/**
 * Buttons that walk back: each press multiplies by the next Jacobian.
 * @type {(page: Page) => HTMLElement}
 */
function walkButtons(page) {
  const further = () => page.set(({ k }) => ({ k: Math.max(1, k - 1) }));
  const back = button("One Jacobian further back", further, { class: "primary" });
  const again = button("Back to t", () => page.set(({ t }) => ({ k: t })));
  page.follow(({ t, k }) => {
    back.disabled = k === 1;
    again.disabled = k === t;
  });
  return el("div", { class: "walk-buttons" }, back, again);
}

/**
 * The numbers of the factor that is lit, or what to do to light one.
 * @type {(factor: Factor | "", state: State) => string[]}
 */
function numbersOfFactor(factor, state) {
  const { t, k } = state;
  const { lossByY, yByH, slopes, before } = computed(state).factors;
  switch (factor) {
    case "lossByY":
      return [`\\frac{∂L(${t})}{∂y(${t})} =`, numbersOf([lossByY])];
    case "yByH":
      return [`\\frac{∂y(${t})}{∂h(${t})}`, `= \\frac{∂y(${t})}{∂z_y(${t})} \\yh{W_{yh}}`, `= ${numbersOf(yByH)}`];
    case "hByH":
      return product(state);
    case "immediate":
      return [
        `\\frac{∂^+h_i(${k})}{∂\\hh{W_{ij}}} = σ_h′(z_i(${k})) h_j(${k - 1})`,
        `= ${numbersOf(slopes)} ${numbersOf([before])}`,
        `= ${numbersOf(outer(slopes, before))}`,
        "\\text{with~} h(k-1) \\text{~held~fixed}",
      ];
    default:
      return [`\\text{Now~} t = ${t}, k = ${k}.`, "\\text{Point~at~a~factor.}"];
  }
}

/**
 * ∂h(t)/∂h(k) as the product of its Jacobians.
 * @type {(state: State, results?: Results) => string[]}
 */
function product(state, { forward } = results(state)) {
  const { t, k } = state;
  const left = `\\frac{∂h(${t})}{∂h(${k})}`;
  if (t === k) return [`${left} = ${numbersOf(chain(forward, t, k))}`, "\\text{no~Jacobian~yet:~the~identity}"];
  const steps = Array.from({ length: t - k }, (_, i) => t - i);
  const symbols = steps.map((i) => `\\frac{∂h(${i})}{∂h(${i - 1})}`);
  const values = steps.map((i, n) => `${n === 0 ? "= " : ""}${numbersOf(jacobian(forward, i))}`);
  return [
    `${left} = ${symbols.join("")}`,
    ...values,
    ...(steps.length > 1 ? [`= ${numbersOf(chain(forward, t, k))}`] : []),
  ];
}

const COLUMNS = [
  "\\text{largest~} σ \\text{~of~} \\frac{∂h(t)}{∂h(k)}",
  "‖ \\frac{∂L(t)}{∂h(k)} ‖",
  "‖ \\text{term~} k ‖",
];

/**
 * The walk back as a table: what has been walked shows its sizes.
 * @type {(page: Page) => HTMLElement}
 */
function walkTable(page) {
  const body = el("tbody");
  /** @type {ReturnType<typeof walkRow>[]} */
  let rows = [];
  page.follow((state) => {
    if (rows.length !== state.t) {
      rows = Array.from({ length: state.t }, (_, i) => walkRow(page, state.t - i));
      body.replaceChildren(...rows.map(({ node }) => node));
    }
    const sizes = computed(state).rows.map((row) => [singularValues(row.chain)[0], norm(row.dState), norm(row.term)]);
    const largest = COLUMNS.map((_, j) =>
      Math.max(...sizes.map((row) => row[j]).filter(Number.isFinite), Number.MIN_VALUE),
    );
    rows.forEach((row, i) => row.update(state.k, sizes[i], largest));
  });
  const heads = ["k", ...COLUMNS].map((text) => el("th", { scope: "col" }, maths(text)));
  return el("table", { class: "walk" }, el("thead", {}, el("tr", {}, heads)), body);
}

/**
 * The row of step k. update: with the k that the walk has come to, the row's sizes, and the largest of each column.
 * @type {(page: Page, k: number) =>
 *   { node: HTMLElement, update: (now: number, sizes: Vector, largest: Vector) => void }}
 */
function walkRow(page, k) {
  const name = { "aria-label": `k = ${k}` };
  const pick = button(String(k), () => page.set({ k }), name);
  const cells = COLUMNS.map(() => ({ text: el("span"), bar: el("i", { "aria-hidden": "true" }) }));
  const columns = cells.map(({ text, bar }) => el("td", {}, text, bar));
  const node = el("tr", {}, el("th", { scope: "row" }, pick), columns);

  /** @type {(now: number, sizes: Vector, largest: Vector) => void} */
  function update(now, sizes, largest) {
    const walked = k >= now;
    node.classList.toggle("ahead", !walked);
    pick.setAttribute("aria-pressed", String(k === now));
    cells.forEach(({ text, bar }, j) => {
      text.textContent = walked ? show(sizes[j]) : "·";
      bar.style.width = walked && Number.isFinite(sizes[j]) ? percent(sizes[j], largest[j]) : "0";
    });
  }

  return { node, update };
}

/** @type {(state: State, results: Results) => string[]} */
function term(state, { forward }) {
  const { t, k } = state;
  const row = computed(state).rows[t - k];
  return [
    `\\frac{∂L(${t})}{∂h(${t})} \\frac{∂h(${t})}{∂h(${k})} = \\frac{∂L(${t})}{∂h(${k})}`,
    `= ${numbersOf([row.dState])},`,
    `\\text{term~} ${k} = \\fn{diag} ${numbersOf(forward.steps[k].slopes)} ${numbersOf(row.dState)}`,
    numbersOf([forward.steps[k].before]),
    `= \\hh{${numbersOf(row.term)}}`,
  ];
}

/** @type {(state: State) => string[]} */
function sum(state) {
  const { rows, sum: total } = computed(state);
  const parts = rows.map(({ term: each }, i) => `${i === 0 ? "=" : "+"} ${numbersOf(each)}`);
  return [`\\frac{∂L(${state.t})}{∂${W}}`, ...parts, ...(rows.length > 1 ? [`= \\hh{${numbersOf(total)}}`] : [])];
}

/**
 * A sentence on why terms may be zero.
 * @type {(state: State, results: Results) => string}
 */
const counts = ({ t }, { forward }) =>
  forward.counts[t]
    ? "The terms stand in the order of the walk, from k = t down to k = 1. That of k = 1 is zero, since h(0) = 0."
    : `L(${t}) is left out of the sum (scene 3), so all its terms are zero.`;

/**
 * The term (t, k) as the gradient at one copy of W_hh, that of step k, and their sum as that at all copies.
 * @type {(state: State, results: Results) => Program}
 */
function pytorch(state, { net, forward }) {
  const { t, k } = state;
  const { rows, sum: total } = computed(state);
  const values = [...rows[t - k].term.flat(), ...total.flat()];
  const format = formatOf(values);
  const code = [
    ...numbers(state, { net }),
    "h, copies = torch.zeros(2, dtype=torch.float64), []",
    `for t in range(${t}):`,
    "    copies.append(W_hh.clone())  # one copy of the shared weights for each step",
    `    h = ${activationCode(net)}(W_hx @ x[t] + copies[t] @ h + b_h)`,
    "    z = W_yh @ h + b_y",
    `L = ${lossCode(net)}${forward.counts[t] ? "" : " * 0  # it does not count"}`,
    `term, = torch.autograd.grad(L, copies[${k - 1}], retain_graph=True)`,
    "L.backward()",
    printOf("(*term.flatten(), *W_hh.grad.flatten())", format),
  ];
  return { code: code.join("\n"), prints: digits(values, format) };
}
