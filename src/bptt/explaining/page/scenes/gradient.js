// Scene 4, lecture lines 10 and 11: the formula is the control. A factor that is pointed at lights its edges and shows its numbers.
import { el } from "../components/dom.js";
import {
  activationChoice,
  biasEditor,
  choosePair,
  earlierStepSlider,
  headChoice,
  inputEditor,
  lossStepSlider,
  targetEditors,
  weightEditor,
} from "../components/editors.js";
import { formula, liveFormula, maths, matrixText } from "../components/formula.js";
import { button } from "../components/inputs.js";
import { networkDrawing } from "../components/network.js";
import { show } from "../components/numbers.js";
import { PRINT, activationCode, digits, formatOf, lossCode, numbers } from "../components/pytorch.js";
import { sentence } from "../components/sentence.js";
import { add, norm, outer } from "../engine/matrix.js";
import { singularValues } from "../engine/svd.js";
import { chain, factors, jacobian, walkBack } from "../engine/terms.js";
import { choice } from "../shell/fields.js";
import { keptFor } from "../shell/kept.js";
import { results } from "../shell/model.js";

const W = "\\hh{W_{hh}}";
// Line 10 factor by factor: how each is written, how it is called, and which parts of the drawing it is.
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

export const scene = {
  id: "gradient",
  order: 4,
  short: "Gradient",
  title: "The gradient, factor by factor",
  fields: { gradient_factor: choice("", ["", ...Object.keys(FACTORS)]) }, // the factor that stays lit
  mount,
  pytorch,
};

// The recurrent edges from h(k) to h(t), with what they join.
function between(k, t) {
  const steps = Array.from({ length: t - k + 1 }, (_, i) => k + i);
  return [...steps.map((i) => `h${i}`), ...steps.slice(1).map((i) => `hh${i}`)];
}

// {rows: for each k from t down to 1 {k, chain, dState, term}, sum: Σ_k of the terms, factors of (t, k)}
const computed = keptFor((state) => {
  const { net, forward } = results(state);
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

function mount(root, page) {
  let pointed = ""; // the factor that the mouse or the focus is on
  const point = (name) => {
    pointed = name;
    page.refresh();
  };
  const shown = (state) => pointed || state.gradient_factor;
  root.append(
    el(
      "p",
      { class: "lead" },
      "The gradient of one loss is a sum over all earlier steps k, and each term is a product along the way back. " +
        "Point at a factor: its edges light up, and its numbers stand below.",
    ),
    el(
      "div",
      { class: "line-10" },
      maths(`\\frac{∂L(t)}{∂${W}} =`),
      factorButton(page, "lossByY", point),
      factorButton(page, "yByH", point),
      maths("\\sum_{k=1}^{t}"),
      factorButton(page, "hByH", point),
      factorButton(page, "immediate", point),
    ),
    liveFormula(page, (state) => (shown(state) ? FORMULAS[shown(state)](state) : ALL(state))),
    drawing(page, shown),
    el("div", { class: "controls" }, lossStepSlider(page), earlierStepSlider(page), walkButtons(page)),
    el(
      "div",
      { class: "equation" },
      el("h3", {}, "Back from t to k, one Jacobian at a time"),
      liveFormula(page, product),
      walk(page),
    ),
    el(
      "div",
      { class: "equation" },
      el("h3", {}, "The term of this k, and the sum over all k"),
      liveFormula(page, term),
      liveFormula(page, sum),
      sentence(page, counts, { class: "said" }),
    ),
    el("h3", {}, "The numbers to change"),
    el(
      "div",
      { class: "matrices" },
      weightEditor(page, "hx"),
      weightEditor(page, "hh"),
      biasEditor(page, "h"),
      weightEditor(page, "yh"),
      biasEditor(page, "y"),
      inputEditor(page),
      targetEditors(page),
    ),
    el("div", { class: "controls" }, activationChoice(page), headChoice(page)),
    el("p", {}, "In practice nobody derives this by hand: automatic differentiation does it, as in this program."),
  );
  page.steps(({ t, k }, by) => ({ k: Math.min(t, Math.max(1, k - by)) }));
}

function factorButton(page, name, point) {
  const node = el(
    "button",
    {
      type: "button",
      class: "factor",
      "aria-label": FACTORS[name].name,
      onclick: () => page.set(({ gradient_factor }) => ({ gradient_factor: gradient_factor === name ? "" : name })),
      onpointerenter: () => point(name),
      onpointerleave: () => point(""),
      onfocus: () => point(name),
      onblur: () => point(""),
    },
    maths(FACTORS[name].text),
  );
  page.follow(({ gradient_factor }) => node.setAttribute("aria-pressed", String(gradient_factor === name)));
  return node;
}

function drawing(page, shown) {
  return networkDrawing(
    page,
    (state, { forward }) => {
      const { t, k } = state;
      const name = shown(state);
      const parts = (name ? [name] : Object.keys(FACTORS)).flatMap((factor) => FACTORS[factor].parts(t, k));
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

// Walking with buttons: the next Jacobian is multiplied on.
function walkButtons(page) {
  const back = button("One Jacobian further back", () => page.set(({ k }) => ({ k: Math.max(1, k - 1) })), {
    class: "primary",
  });
  const again = button("Back to t", () => page.set(({ t }) => ({ k: t })));
  page.follow(({ t, k }) => {
    back.disabled = k === 1;
    again.disabled = k === t;
  });
  return el("div", { class: "walk-buttons" }, back, again);
}

// The numbers of the factor that is lit.
const numbersOf = (values) => matrixText(values, show);
const FORMULAS = {
  lossByY: (state) => [`\\frac{∂L(${state.t})}{∂y(${state.t})} =`, numbersOf([computed(state).factors.lossByY])],
  yByH: (state) => [
    `\\frac{∂y(${state.t})}{∂h(${state.t})}`,
    `= \\frac{∂y(${state.t})}{∂z_y(${state.t})} \\yh{W_{yh}}`,
    `= ${numbersOf(computed(state).factors.yByH)}`,
  ],
  hByH: product,
  immediate: ({ k, ...state }) => {
    const { slopes, before } = computed({ k, ...state }).factors;
    return [
      `\\frac{∂^+h_i(${k})}{∂\\hh{W_{ij}}} = σ_h′(z_i(${k})) h_j(${k - 1})`,
      `= ${numbersOf(slopes)} ${numbersOf([before])}`,
      `= ${numbersOf(outer(slopes, before))}`,
      "\\text{with~} h(k-1) \\text{~held~fixed}",
    ];
  },
};
const ALL = ({ t, k }) => [`\\text{Now~} t = ${t}, k = ${k}.`, "\\text{Point~at~a~factor.}"];

// ∂h(t)/∂h(k) as the product of its Jacobians.
function product(state, { forward } = results(state)) {
  const { t, k } = state;
  const left = `\\frac{∂h(${t})}{∂h(${k})}`;
  if (t === k) return [`${left} = ${numbersOf(chain(forward, t, k))}`, "\\text{no~Jacobian~yet:~the~identity}"];
  const steps = Array.from({ length: t - k }, (_, i) => t - i);
  const symbols = steps.map((i) => `\\frac{∂h(${i})}{∂h(${i - 1})}`);
  const values = steps.map((i, n) => `${n === 0 ? "= " : ""}${numbersOf(jacobian(forward, i))}`);
  return [`${left} = ${symbols.join("")}`, ...values, ...(steps.length > 1 ? [`= ${numbersOf(chain(forward, t, k))}`] : [])];
}

// The walk back as a table: what has been walked shows its sizes.
function walk(page) {
  const body = el("tbody");
  const heads = [
    "k",
    "\\text{largest~} σ \\text{~of~} \\frac{∂h(t)}{∂h(k)}",
    "‖ \\frac{∂L(t)}{∂h(k)} ‖",
    "‖ \\text{term~} k ‖",
  ];
  let rows = [];

  function build(t) {
    rows = Array.from({ length: t }, (_, i) => {
      const pick = button(String(t - i), () => page.set({ k: t - i }), { "aria-label": `k = ${t - i}` });
      const cells = [1, 2, 3].map(() => ({ text: el("span"), bar: el("i", { "aria-hidden": "true" }) }));
      return {
        pick,
        cells,
        node: el(
          "tr",
          {},
          el("th", { scope: "row" }, pick),
          cells.map(({ text, bar }) => el("td", {}, text, bar)),
        ),
      };
    });
    body.replaceChildren(...rows.map(({ node }) => node));
  }

  page.follow((state) => {
    if (rows.length !== state.t) build(state.t);
    const sizes = computed(state).rows.map((row) => [singularValues(row.chain)[0], norm(row.dState), norm(row.term)]);
    const largest = [0, 1, 2].map((j) => Math.max(...sizes.map((row) => row[j]).filter(Number.isFinite), Number.MIN_VALUE));
    rows.forEach(({ pick, cells, node }, i) => {
      const k = state.t - i;
      const walked = k >= state.k;
      node.classList.toggle("ahead", !walked);
      pick.setAttribute("aria-pressed", String(k === state.k));
      cells.forEach(({ text, bar }, j) => {
        text.textContent = walked ? show(sizes[i][j]) : "·";
        bar.style.width = walked && Number.isFinite(sizes[i][j]) ? `${(100 * sizes[i][j]) / largest[j]}%` : "0";
      });
    });
  });
  return el(
    "table",
    { class: "walk" },
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        heads.map((text) => el("th", { scope: "col" }, maths(text))),
      ),
    ),
    body,
  );
}

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

function sum(state) {
  const { rows, sum: total } = computed(state);
  const parts = rows.map(({ term: each }, i) => `${i === 0 ? "=" : "+"} ${numbersOf(each)}`);
  return [`\\frac{∂L(${state.t})}{∂${W}}`, ...parts, ...(rows.length > 1 ? [`= \\hh{${numbersOf(total)}}`] : [])];
}

// Why terms may be zero.
const counts = ({ t }, { forward }) =>
  forward.counts[t]
    ? "The terms stand in the order of the walk, from k = t down to k = 1. That of k = 1 is zero, since h(0) = 0."
    : `L(${t}) is left out of the sum (scene 3), so all its terms are zero.`;

// The gradient at one copy of W_hh, that of step k, and at all copies: the term (t, k), and their sum.
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
    PRINT("(*term.flatten(), *W_hh.grad.flatten())", format),
  ];
  return { code: code.join("\n"), prints: digits(values, format) };
}
