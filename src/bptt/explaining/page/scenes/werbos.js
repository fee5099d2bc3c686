// Scene 8, eq. (9): the network of Werbos's paper, with recurrent weights of lag 1 and lag 2. The gradient now has
// several ways back from t to k, and their number grows as the Fibonacci numbers do.
import { controls, equation, lead, numbersToChange } from "../components/blocks.js";
import { el, pointer } from "../components/dom.js";
import {
  activationChoice,
  biasEditor,
  earlierStepSlider,
  inputEditor,
  lengthSlider,
  lossStepSlider,
  weightEditor,
} from "../components/editors.js";
import { formula, liveFormula, maths, numbersOf } from "../components/formula.js";
import { choices, matrixEditor } from "../components/inputs.js";
import { networkDrawing } from "../components/network.js";
import { show } from "../components/numbers.js";
import { predictFirst } from "../components/predict.js";
import { activationCode, digits, formatOf, lossCode, numbers, printOf, python } from "../components/pytorch.js";
import { differenceBadge, termsOf } from "../components/terms-of.js";
import { triangleTable } from "../components/triangle-table.js";
import { add } from "../engine/matrix.js";
import { gradient, parameterOf, run } from "../engine/network.js";
import { pathCount, pathJacobian, paths, sumOverPaths } from "../engine/paths.js";
import { distance, termNorms, terms } from "../engine/terms.js";
import { choice, fixedMatrix, integer, namesOf } from "../shell/fields.js";
import { keptFor } from "../shell/kept.js";
import { results, targetsOf } from "../shell/model.js";
/** @import { Page, Pointed, Program, RnnNetwork, Scene, State, TriangleCell } from "../types.d.ts" */

const WEIGHTS = { W_hx: "\\hx{W_{hx}}", W_hh: "\\hh{W_{hh}}", W_hh2: "\\lag{W_{hh2}}" };
const DECADES = 6; // of the bars in the map

export const fields = {
  werbos_lags: choice("2", ["1", "2"]),
  werbos_W_hh2: fixedMatrix([
    [-0.5, 0.3],
    [0.2, 0.4],
  ]),
  werbos_of: choice("W_hh", namesOf(WEIGHTS)), // the matrix whose terms the map shows
  werbos_path: integer(0, { min: 0, max: 99 }), // which way from k to t is lit; 0: all
};

/** @type {Scene} */
export const scene = {
  id: "werbos",
  order: 8,
  short: "Werbos",
  title: "Werbos 1990: two lags",
  fields,
  mount,
  pytorch,
};

/** @typedef {keyof typeof WEIGHTS} Weight */

// What the scene shows. By the matrix's name: ways, the sum over all ways; sizes, of the terms.
const computed = keptFor((/** @type {State} */ state) => {
  const { net: shared } = results(state);
  /** @type {RnnNetwork} */
  const net = state.werbos_lags === "2" ? { ...shared, W_hh2: state.werbos_W_hh2 } : shared;
  const forward = run(net, state.x, targetsOf(state));
  const names = namesOf(WEIGHTS).filter((name) => net[name]);
  return {
    net,
    forward,
    names,
    lags: net.W_hh2 ? 2 : 1,
    gradient: gradient(net, forward),
    ways: byName(names, (name) => sumOverPaths(net, forward, name)),
    sizes: byName(names, (name) => termNorms(terms(net, forward, name))),
  };
});

/**
 * What make(name) gives, by name.
 * @type {<Made>(names: Weight[], make: (name: Weight) => Made) => Record<Weight, Made>}
 */
function byName(names, make) {
  return /** @type {any} */ (Object.fromEntries(names.map((name) => [name, make(name)])));
}

/**
 * The matrix whose terms are shown: W_hh where W_hh2 is switched off.
 * @type {(state: State, found: { names: Weight[] }) => Weight}
 */
const shownOf = ({ werbos_of }, { names }) => (names.includes(werbos_of) ? werbos_of : "W_hh");

/** @type {Scene["mount"]} */
function mount(root, page) {
  const pointed = pointer(page, 0); // the way, counted from 1
  root.append(
    lead(
      "The network in Werbos’s paper has recurrent weights of lag 1 and of lag 2: the hidden state sees " +
        "the last two. Then several ways lead from step k to step t, and the gradient is the sum over all of them.",
    ),
    drawing(page, pointed),
    controls(
      choices(page, { label: "Recurrent weights", field: "werbos_lags", options: { 1: "lag 1", 2: "lags 1 and 2" } }),
      lossStepSlider(page),
      earlierStepSlider(page),
      lengthSlider(page),
    ),
    waysList(page, pointed),
    equation("Net input", netInput(page)),
    equation(
      "Back from t to k: multiply along a way, add over the ways",
      alongWays(page),
      liveFormula(page, numbersOfWays),
    ),
    el("h3", {}, "The terms of the gradient"),
    map(page),
    difference(page),
    question(page),
    ...numbersToChange(editors(page)),
    controls(activationChoice(page)),
    source(),
  );
}

/** @type {(page: Page) => HTMLElement} */
function question(page) {
  return predictFirst(page, {
    question: "Lags 1 and 2: how many ways lead from h(1) to h(6)?",
    options: ["5", "8", "32"],
    right: [5, 8, 32].indexOf(pathCount(6, 1, 2)),
    why: [
      el(
        "p",
        {},
        "The last edge into h(t) has lag 1 or lag 2, so the ways to h(t) are those to h(t−1) and those to h(t−2). " +
          "That is the rule of the Fibonacci numbers: 1, 1, 2, 3, 5, 8. Nobody lists the ways to get the gradient: one walk back adds " +
          "them up as it goes.",
      ),
      formula("N(t, k) = N(t-1, k) + N(t-2, k)"),
    ],
  });
}

/** @type {(page: Page) => HTMLElement[]} */
function editors(page) {
  return [
    weightEditor(page, "hx"),
    weightEditor(page, "hh"),
    matrixEditor(page, {
      field: "werbos_W_hh2",
      caption: formula(WEIGHTS.W_hh2),
      colour: "lag",
      hidden: (state) => state.werbos_lags === "1",
    }),
    biasEditor(page, "h"),
    weightEditor(page, "yh"),
    inputEditor(page),
  ];
}

/** @type {() => HTMLElement} */
function source() {
  const words = [
    "P. J. Werbos, “Backpropagation through time: what it does and how to do it”, Proceedings of the IEEE 78 " +
      "(1990). His W′ and W″ are ",
    maths(WEIGHTS.W_hh),
    " and ",
    maths(WEIGHTS.W_hh2),
    " here; in his network they take all units, here the hidden ones.",
  ];
  return el("p", {}, el("small", {}, words));
}

/** @type {(state: State) => number} */
const lagsOf = ({ werbos_lags }) => Number(werbos_lags);

/**
 * The ways that are lit: the one that is pointed at or chosen, or all.
 * @type {(state: State, pointed: number) => number[][]}
 */
function litWays(state, pointed) {
  const all = paths(state.t, state.k, lagsOf(state));
  const one = all[(pointed || state.werbos_path) - 1];
  return one ? [one] : all;
}

/** @type {(from: number, to: number) => string} */
const edgeKey = (from, to) => `${to - from === 1 ? "hh" : "lag"}${to}`;
/** @type {(way: number[]) => string[]} */
const edges = (way) => way.slice(1).map((to, n) => edgeKey(way[n], to));

/** @type {(page: Page, pointed: Pointed<number>) => HTMLElement} */
function drawing(page, pointed) {
  return networkDrawing(page, (state) => {
    const ways = litWays(state, pointed.now());
    const { x, k, t } = state;
    const said =
      ways.length === 1
        ? `the way ${ways[0].map((i) => `h(${i})`).join(" to ")} is lit`
        : `${ways.length} ways are lit`;
    return {
      T: x.length,
      lag2: lagsOf(state) === 2,
      lit: new Set([...ways.flatMap(edges), ...ways.flat().map((i) => `h${i}`), `y${t}`, `yh${t}`]),
      label:
        `The unfolded network with recurrent edges of lag ${lagsOf(state) === 2 ? "1 and, dashed, of lag 2" : "1"}; ` +
        `from step ${k} to step ${t} ${said}`,
    };
  });
}

/**
 * Each way from k to t as a button, and how many there are.
 * @type {(page: Page, pointed: Pointed<number>) => HTMLElement}
 */
function waysList(page, pointed) {
  const count = el("p", { class: "said", role: "status" });
  const list = el("div", { class: "ways", role: "group", "aria-label": "Ways" });
  /** @type {HTMLElement[]} */
  let buttons = [];
  let before = "";

  /** @type {(way: number[], n: number) => HTMLElement} */
  function wayButton(way, n) {
    const pin = () => page.set(({ werbos_path }) => ({ werbos_path: werbos_path === n ? 0 : n }));
    return el("button", { type: "button", onclick: pin, ...pointed.on(n) }, written(way));
  }

  page.follow((state) => {
    const ways = paths(state.t, state.k, lagsOf(state));
    const now = ways.join(" ");
    if (now !== before) {
      before = now;
      buttons = ways.map((way, i) => wayButton(way, i + 1));
      list.replaceChildren(...buttons);
      count.textContent = counted(state);
    }
    buttons.forEach((each, i) => each.setAttribute("aria-pressed", String(state.werbos_path === i + 1)));
  });
  return el("div", {}, count, list);
}

/**
 * k → … → t, each arrow in its matrix's look: ⇢ is lag 2.
 * @type {(way: number[]) => (string | HTMLElement)[]}
 */
function written(way) {
  /** @type {(lag: number) => HTMLElement} */
  const arrow = (lag) => el("span", { class: lag === 1 ? "hh" : "lag" }, lag === 1 ? " → " : " ⇢ ");
  return way.flatMap((step, n) => (n === 0 ? [String(step)] : [arrow(step - way[n - 1]), String(step)]));
}

/** @type {(state: State) => string} */
function counted(state) {
  const { t, k } = state;
  /** @type {(to: number) => number} */
  const count = (to) => (to < k ? 0 : pathCount(to, k, lagsOf(state)));
  if (t === k) return `From h(${k}) to itself: 1 way, without an edge.`;
  const sum = lagsOf(state) === 2 && t - k >= 2 ? ` = ${count(t - 1)} + ${count(t - 2)}` : "";
  return `From h(${k}) to h(${t}): ${count(t)}${sum} ${count(t) === 1 ? "way" : "ways"}${lagsOf(state) === 2 ? "" : " with lag 1 alone"}.`;
}

/** @type {(page: Page) => HTMLElement} */
function netInput(page) {
  return liveFormula(page, ({ werbos_lags }) => [
    "z_h(t) =",
    "\\hx{W_{hx}} x(t)",
    "+ \\hh{W_{hh}} h(t-1)",
    ...(werbos_lags === "2" ? ["+ \\lag{W_{hh2}} h(t-2)"] : []),
    "+ b_h",
  ]);
}

/** @type {(page: Page) => HTMLElement} */
function alongWays(page) {
  return liveFormula(page, ({ werbos_lags }) =>
    werbos_lags === "2"
      ? [
          "\\frac{∂h(t)}{∂h(k)} =",
          "\\sum_{\\text{ways}}",
          "\\prod_{\\text{edges~}i→j} D(j) W,",
          "W = \\hh{W_{hh}} \\text{~for~lag~1,}",
          "\\lag{W_{hh2}} \\text{~for~lag~2,}",
          "D(j) = \\fn{diag}(σ_h′(z_h(j)))",
        ]
      : ["\\frac{∂h(t)}{∂h(k)} =", "\\prod_{i=k+1}^{t} D(i) \\hh{W_{hh}},", "D(i) = \\fn{diag}(σ_h′(z_h(i)))"],
  );
}

/** @type {(state: State) => string[]} */
function numbersOfWays(state) {
  const { net, forward, lags } = computed(state);
  const { t, k } = state;
  const each = paths(t, k, lags).map((way) => pathJacobian(net, forward, way));
  const parts = each.map((product, n) => `${n === 0 ? "=" : "+"} ${numbersOf(product)}`);
  const sum = each.reduce((a, b) => add(a, b));
  return [`\\frac{∂h(${t})}{∂h(${k})}`, ...parts, ...(each.length > 1 ? [`= ${numbersOf(sum)}`] : [])];
}

/** @type {(page: Page) => HTMLElement} */
function map(page) {
  const table = triangleTable(page, {
    label: "The terms (t, k)",
    read: ({ x, t, k }) => ({ T: x.length, t, k }),
    choose: (t, k) => page.set({ t, k, werbos_path: 0 }),
    cell: mapCell,
  });
  const of = termsOf(page, {
    field: "werbos_of",
    options: WEIGHTS,
    chosen: (state) => shownOf(state, computed(state)),
    there: (name, state) => computed(state).names.some((one) => one === name),
  });
  const key =
    "In each cell: the number of ways from k to t, the size of the term, and a bar for the size on a log " +
    `scale over ${DECADES} decades. Terms are zero where the state before is the start, h(0) = h(−1) = 0.`;
  return el("div", {}, of, el("div", { class: "wide" }, table), el("p", {}, el("small", {}, key)));
}

/** @type {(t: number, k: number, state: State) => TriangleCell} */
function mapCell(t, k, state) {
  const found = computed(state);
  const sizes = found.sizes[shownOf(state, found)];
  const largest = Math.max(...sizes.flat().filter(Number.isFinite), 0);
  const [count, size] = [pathCount(t, k, found.lags), sizes[t][k]];
  const ways = `${count} ${count === 1 ? "way" : "ways"}`;
  return {
    strong: String(count),
    text: show(size, 2),
    label: `t ${t}, k ${k}: ${ways}, size ${show(size)}`,
    share: size > 0 ? Math.min(1, Math.max(0.03, 1 + Math.log10(size / largest) / DECADES)) : 0,
  };
}

/**
 * The sum over all ways, and how far it is from the gradient by backpropagation.
 * @type {(page: Page) => HTMLElement}
 */
function difference(page) {
  const sums = liveFormula(page, (state) => {
    const found = computed(state);
    const name = shownOf(state, found);
    return [
      `\\frac{∂L}{∂${WEIGHTS[name]}} =`,
      "\\sum_{t}",
      "\\sum_{k ≤ t}",
      "\\sum_{\\text{ways}}",
      "\\frac{∂L(t)}{∂h(t)}",
      "\\prod_{\\text{edges}} D(j) W",
      `\\frac{∂^+h(k)}{∂${WEIGHTS[name]}}`,
      `= ${numbersOf(found.ways[name])}`,
    ];
  });
  const badge = differenceBadge(page, "The sum over all ways", (state) => {
    const { names, ways, gradient: found, sizes } = computed(state);
    return {
      distance: Math.max(...names.map((name) => distance(ways[name], parameterOf(found, name), sizes[name]))),
      matrices: names.length,
    };
  });
  return el("div", {}, sums, badge);
}

/** @type {(state: State) => Program} */
function pytorch(state) {
  const { net, forward, gradient: found } = computed(state);
  const two = Boolean(net.W_hh2);
  const values = [...found.W_hh.flat(), ...(found.W_hh2 ?? []).flat()];
  const format = formatOf(values);
  const code = [
    ...numbers(state, { net }),
    ...(net.W_hh2 ? [`W_hh2 = array(${python(net.W_hh2)}).requires_grad_()`] : []),
    "h, before, L = array([0, 0]), array([0, 0]), []",
    `for t in range(${forward.T}):`,
    `    z = W_hx @ x[t] + W_hh @ h ${two ? "+ W_hh2 @ before " : ""}+ b_h`,
    `    h, before = ${activationCode(net)}(z), h`,
    "    z = W_yh @ h + b_y",
    `    L.append(${lossCode(net)})`,
    `${state.counted === "each" ? "sum(L)" : "L[-1]"}.backward()`,
    `${printOf(`(${two ? "*W_hh.grad.flatten(), *W_hh2.grad.flatten()" : "*W_hh.grad.flatten(),"})`, format)}`,
  ];
  return { code: code.join("\n"), prints: digits(values, format) };
}
