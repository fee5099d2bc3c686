// The user's own network: losses, map (t, k), sums by lag, Jacobian products. Only where data are in the page, and then
// it is the scene that the page opens with. t and k are blocks of steps in the state, and steps in all text.
import { controls } from "../components/blocks.js";
import { legend } from "../components/decades.js";
import { el } from "../components/dom.js";
import { formula } from "../components/formula.js";
import { heatmap } from "../components/heatmap.js";
import { choices, slider } from "../components/inputs.js";
import { lineChart } from "../components/lines.js";
import { show, showPower } from "../components/numbers.js";
import { sentence } from "../components/sentence.js";
import { choice, integer } from "../shell/fields.js";
import { keptFor } from "../shell/kept.js";
import { block, blockName, decodedMap, least, most, own as given, place, read } from "../shell/own.js";
/**
 * @import {
 *   Children, DecodedMap, LineChart, Own, OwnLayer, OwnMap, OwnProducts, OwnSample, Page, Pair, Scene, State
 * } from "../types.d.ts"
 */

const LAST = 4095; // of any sample: clamped to what there is
const DEEPEST = 12; // decades below the largest value that are told apart
const own = /** @type {Own} */ (given); // the scene exists only where there are data
const PARAMETERS = [...new Set(given?.layers.flatMap((layer) => layer.parameters))];

/** @type {(names: string[]) => string} */
const preferred = (names) => (names.includes("weight_hh") ? "weight_hh" : names[0]);

export const fields = {
  own_layer: integer(firstShown(), { min: 0, max: given ? given.layers.length - 1 : 0 }),
  own_parameter: choice(preferred(PARAMETERS), PARAMETERS),
  own_sample: integer(0, { min: 0, max: given ? given.samples.length - 1 : 0 }),
  own_t: integer(LAST, { min: 0, max: LAST }),
  own_k: integer(LAST, { min: 0, max: LAST }),
};

/**
 * The layer that is shown at first: the last that looks back.
 * @type {() => number}
 */
function firstShown() {
  return Math.max(0, given ? given.layers.findLastIndex(({ reverse }) => !reverse) : 0);
}

/** @type {Scene} */
export const scene = {
  id: "own",
  order: 100,
  short: "Yours",
  title: "Your own network",
  mount,
  exists: () => given !== null,
  opens: true,
  fields,
};

/**
 * The cell under the mouse; it is shown instead of the chosen one.
 * @type {Pair | null}
 */
let pointed = null;

/**
 * The layer, sample and cell that the state chooses. name: of the parameter; map: null where there is none.
 * @typedef {{ layer: OwnLayer, sample: OwnSample, name: string, t: number, k: number, map: DecodedMap | null }} Chosen
 * @type {(state: State) => Chosen}
 */
function chosen(state) {
  const layer = own.layers[state.own_layer];
  const sample = layer.samples[state.own_sample];
  const name = has(layer, state.own_parameter) ? state.own_parameter : preferred(layer.parameters);
  const [row, column] = pointed ?? [state.own_t, state.own_k];
  const t = Math.min(row, sample.blocks - 1);
  const k = layer.reverse ? Math.max(t, Math.min(column, sample.blocks - 1)) : Math.min(column, t);
  return { layer, sample, name, t, k, map: sample.maps && decoded(sample.maps[name]) };
}

/** @type {(layer: OwnLayer, name: string) => boolean} */
const has = (layer, name) => layer.parameters.includes(name);

const decoded = keptFor((/** @type {OwnMap} */ map) => decodedMap(map, DEEPEST));

/** @type {Scene["mount"]} */
function mount(root, page) {
  root.append(
    about(page),
    controls(menus(page)),
    words(page),
    part(page, "Losses L(t)", (state) => own.losses[state.own_sample] !== null, lossChart(page)),
    part(
      page,
      "The map (t, k): the size of each term",
      hasMap,
      el("div", { class: "formula" }, formula("\\frac{∂L(t)}{∂s(t)}", "\\frac{∂s(t)}{∂s(k)}", "\\frac{∂^+s(k)}{∂θ}")),
      el("div", { class: "map-and-cell" }, theMap(page), theCell(page)),
      legendOf(page),
      thinned(page),
    ),
    part(page, "How far back: the sums by lag", hasMap, lagChart(page), horizon(page)),
    part(
      page,
      "What carries it",
      (state) => Object.keys(chosen(state).map?.through ?? {}).length > 0,
      el("p", {}, "An LSTM's state is (h, c): the share of the lag sum that goes back through each."),
      shareChart(page),
    ),
    part(
      page,
      "Singular values of the Jacobian products",
      (state) => chosen(state).sample.products !== null,
      productChart(page),
      productWords(page),
    ),
  );
}

/** @type {(state: State) => boolean} */
const hasMap = (state) => chosen(state).map !== null;

/**
 * A part of the scene, hidden while there is nothing to show in it.
 * @type {(page: Page, title: string, there: (state: State) => boolean, ...content: Children) => HTMLElement}
 */
function part(page, title, there, ...content) {
  const node = el("section", { class: "part", "aria-label": title }, el("h3", {}, title), ...content);
  page.follow((state) => (node.hidden = !there(state)));
  return node;
}

/** @type {(page: Page) => HTMLElement} */
const about = (page) =>
  sentence(
    page,
    (state) => {
      const { layer, sample } = chosen(state);
      const which = own.batch > 1 ? `sample ${own.samples[state.own_sample] + 1} of ${own.batch}` : "one sample";
      const left = own.left_out > 0 ? ` ${own.left_out} more layers are left out.` : "";
      return (
        `${own.model}: ${layer.name}, ${layer.cell} with ${layer.units} hidden units, on ${which}, ${sample.steps} ${sample.steps === 1 ? "step" : "steps"}. ` +
        `The loss of the whole batch is ${show(read(own.total))}.${left}`
      );
    },
    { class: "lead" },
  );

// Choosing ----------------------------------------------------------------------------------------------------------

/** @type {(page: Page) => (HTMLElement | null)[]} */
function menus(page) {
  const layers = own.layers.map((layer) => layer.name);
  const samples = own.samples.map((sample) => `sample ${sample + 1}`);
  return [
    menu(page, "Layer", "own_layer", layers),
    choices(page, {
      label: "Parameter",
      field: "own_parameter",
      options: Object.fromEntries(PARAMETERS.map((name) => [name, name])),
      chosen: (state) => chosen(state).name,
      there: (name, state) => has(own.layers[state.own_layer], name), // a layer may have no bias
    }),
    menu(page, "Sample", "own_sample", samples),
  ];
}

/**
 * A list to choose from; null where there is no choice.
 * @type {(page: Page, label: string, field: "own_layer" | "own_sample", options: string[]) => HTMLElement | null}
 */
function menu(page, label, field, options) {
  const select = el(
    "select",
    { onchange: () => page.set({ [field]: Number(select.value) }) },
    options.map((said, i) => el("option", { value: i }, said)),
  );
  page.follow((state) => (select.value = String(state[field])));
  return options.length < 2 ? null : el("label", { class: "menu" }, label, select);
}

/** @type {(page: Page) => HTMLElement} */
function words(page) {
  const node = el("div", { class: "notice words", role: "status" });
  page.follow((state) => {
    const { sample } = chosen(state);
    node.hidden = sample.words.length === 0;
    const now = sample.words.join("\n");
    if (node.dataset.now !== now) node.replaceChildren(...sample.words.map((word) => el("p", {}, word)));
    node.dataset.now = now;
  });
  return node;
}

// Losses ------------------------------------------------------------------------------------------------------------

/** @type {(page: Page) => HTMLElement} */
function lossChart(page) {
  return lineChart(page, (state) => {
    const losses = own.losses[state.own_sample];
    if (losses === null) return null;
    const values = losses.values.map(read);
    const odd = values.filter((value) => !Number.isFinite(value)).length;
    const { t, sample } = chosen(state);
    return {
      x: middles(values.length, losses.steps, 1),
      first: 1,
      last: losses.steps,
      log: false,
      axis: "step t",
      lines: [{ name: "L(t)", values, class: "loss" }],
      cursor: sample.steps === losses.steps ? middle(t, sample.blocks, sample.steps, 1) : null,
      label:
        `The losses of ${losses.steps} steps, from ${show(least(values))} to ${show(most(values))}` +
        (odd ? `; ${odd} are not finite` : ""),
    };
  });
}

/**
 * The middle of block i on the axis of steps.
 * @type {(i: number, blocks: number, steps: number, counted: number) => number}
 */
function middle(i, blocks, steps, counted) {
  const [from, to] = block(i, blocks, steps);
  return (from + to - 1) / 2 + counted;
}

/** @type {(blocks: number, steps: number, counted: number) => number[]} */
const middles = (blocks, steps, counted) => Array.from({ length: blocks }, (_, i) => middle(i, blocks, steps, counted));

// The map -----------------------------------------------------------------------------------------------------------

/** @type {(page: Page) => HTMLElement} */
function theMap(page) {
  return heatmap(
    page,
    (state) => {
      const { layer, sample, name, map, t, k } = chosen(state);
      if (map === null) return null;
      return {
        id: `${state.own_layer} ${name} ${state.own_sample}`,
        blocks: sample.blocks,
        steps: sample.steps,
        reverse: layer.reverse,
        at: (row, column) => map.values[place(row, column, sample.blocks, layer.reverse)],
        top: map.top,
        low: map.low,
        t,
        k,
        label: `Map of the terms of ${name}. ${cellText(chosen(state))}`,
      };
    },
    ([t, k]) => page.set({ own_t: t, own_k: k }),
    (cell) => {
      const before = String(pointed);
      pointed = cell;
      if (String(pointed) !== before) page.refresh();
    },
  );
}

/** @type {(here: Chosen) => string} */
function cellText({ layer, sample, map, t, k }) {
  if (map === null) return "";
  const value = map.values[place(t, k, sample.blocks, layer.reverse)];
  const size = Number.isFinite(value) ? `≈ ${showPower(value)}` : showPower(value); // cells are kept to 1 %
  return `t = ${blockName(t, sample.blocks, sample.steps)}, k = ${blockName(k, sample.blocks, sample.steps)}: ${size}`;
}

/** @type {(page: Page) => HTMLElement} */
function theCell(page) {
  /** @type {(value: number) => string} */
  const say = (value) => {
    const { sample } = chosen(page.get());
    return blockName(value, sample.blocks, sample.steps);
  };
  /** @type {(state: State) => number} */
  const end = (state) => chosen(state).sample.blocks - 1;
  /** @type {(state: State) => string} */
  const readout = (state) => cellText(chosen(state));
  return el(
    "div",
    { class: "the-cell" },
    sentence(page, readout, { class: "readout", "aria-live": "polite" }),
    sentence(page, (state) => lagText(chosen(state))),
    slider(page, {
      label: "Loss step t",
      min: 0,
      max: end,
      read: (state) => chosen(state).t,
      write: (t) => ({ own_t: t }),
      say,
    }),
    slider(page, {
      label: "Earlier step k",
      min: (state) => (chosen(state).layer.reverse ? chosen(state).t : 0),
      max: (state) => (chosen(state).layer.reverse ? end(state) : chosen(state).t),
      read: (state) => chosen(state).k,
      write: (k) => ({ own_k: k }),
      say,
    }),
  );
}

/** @type {(pair: { t: number, k: number }) => number} */
const lagOf = ({ t, k }) => Math.abs(t - k);

/** @type {(here: Chosen) => string} */
function lagText(here) {
  if (here.map === null) return "";
  const { sample, map } = here;
  const lag = lagOf(here);
  const parts = Object.entries(map.shares).flatMap(([name, values]) => {
    const share = values[lag];
    return share === null ? [] : [`${show(share, 1)} % through ${name}`];
  });
  const which = blockName(lag, sample.blocks, sample.steps, 0);
  const [lags, sizes] = which.includes("–")
    ? [`Lags ${which}`, "the sizes of each lag’s terms sum to at most"]
    : [`Lag ${which}`, "the sizes of all its terms sum to"];
  return `${lags}: ${sizes} ${show(map.lags[lag])}${parts.map((part) => `, ${part}`).join("")}`;
}

/** @type {(page: Page) => HTMLElement} */
function legendOf(page) {
  const node = el("div");
  page.follow((state) => {
    const { map } = chosen(state);
    if (map === null) return;
    const notes = {
      ...(map.has.zero && { zero: "exactly 0" }),
      ...(map.has.NaN && { nan: "NaN" }),
      ...(map.has.infinite && { infinite: "∞" }),
    };
    node.replaceChildren(legend({ ...map, notes }));
  });
  return node;
}

/** @type {(page: Page) => HTMLElement} */
const thinned = (page) =>
  sentence(
    page,
    (state) => {
      const { sample } = chosen(state);
      const { steps, blocks } = sample;
      if (steps === blocks) return "";
      const sizes = [...new Set([Math.floor(steps / blocks), Math.ceil(steps / blocks)])].join(" or ");
      return `Thinned: ${steps} steps as ${blocks} blocks of ${sizes}. A cell shows the largest term in its block; so do the losses and the sums by lag.`;
    },
    { class: "thinned" },
  );

// How far back ------------------------------------------------------------------------------------------------------

/** @type {(page: Page) => HTMLElement} */
function lagChart(page) {
  return lineChart(page, (state) => {
    const here = chosen(state);
    if (here.map === null) return null;
    const { sample, map, layer } = here;
    return {
      ...lagAxis(here),
      log: true,
      lines: [
        { name: "sum of ‖term‖", values: map.lags.map(Math.log10), class: "whole" },
        ...Object.entries(map.through).map(([name, values], i) => ({
          name: `through ${name}`,
          values: values.map(Math.log10),
          class: `through-${i}`,
        })),
      ],
      marks: map.horizon === null ? [] : [{ at: map.horizon, text: `horizon ${map.horizon}` }],
      label: `Sums of the terms of ${layer.name} by lag, ${sample.steps} lags, from ${show(map.lags[0])} at lag 0 to ${show(map.lags[map.lags.length - 1])}`,
    };
  });
}

/** @type {(here: Chosen) => Pick<LineChart, "x" | "first" | "last" | "axis" | "cursor">} */
const lagAxis = (here) => ({
  x: middles(here.sample.blocks, here.sample.steps, 0),
  first: 0,
  last: Math.max(1, here.sample.steps - 1),
  axis: here.layer.reverse ? "lag k − t in steps" : "lag t − k in steps",
  cursor: middle(lagOf(here), here.sample.blocks, here.sample.steps, 0),
});

/** @type {(page: Page) => HTMLElement} */
const horizon = (page) =>
  sentence(page, (state) => {
    const { map } = chosen(state);
    if (map === null || map.horizon === null) return "";
    return `Memory horizon in this sequence: a loss step's gradient has less than 1 % of its norm beyond lag ${map.horizon}.`;
  });

/** @type {(page: Page) => HTMLElement} */
function shareChart(page) {
  return lineChart(page, (state) => {
    const here = chosen(state);
    if (here.map === null) return null;
    const lines = Object.entries(here.map.shares).map(([name, values], i) => ({
      name: `through ${name}, %`,
      values: values.map((value) => value ?? -Infinity),
      class: `through-${i}`,
    }));
    return {
      ...lagAxis(here),
      log: false,
      lines,
      label: "Shares of the lag sums through each component of the state, in percent",
    };
  });
}

// Products ----------------------------------------------------------------------------------------------------------

/** @type {(page: Page) => HTMLElement} */
function productChart(page) {
  return lineChart(page, (state) => {
    const { sample, layer } = chosen(state);
    const { products } = sample;
    if (products === null) return null;
    const lines = products.log10.map((values, i) => ({ ...rank(products, i), values: values.map(read) }));
    const largest = lines[0].values;
    return {
      x: products.lags,
      first: 0,
      last: Math.max(1, ...products.lags),
      log: true,
      lines,
      deepest: Math.max(DEEPEST, most(largest) - least(largest) + 3),
      axis: layer.reverse ? "lag k − t in steps" : "lag t − k in steps",
      label: `Singular values by lag; the largest goes from ${showPower(largest[0])} to ${showPower(largest[largest.length - 1])}`,
    };
  });
}

/** @type {(products: OwnProducts, i: number) => { name: string | null, class: string }} */
function rank({ ranks, size }, i) {
  if (ranks[i] === 1) return { name: "largest", class: "rank-first" };
  if (ranks[i] === size) return { name: "smallest", class: "rank-last" };
  return { name: i === 1 ? "in between" : null, class: "rank-between" };
}

/** @type {(page: Page) => HTMLElement} */
const productWords = (page) =>
  sentence(page, (state) => {
    const { products } = chosen(state).sample;
    if (products === null) return "";
    const { t, ranks, size } = products;
    const which = ranks.length === 1 ? "The largest is drawn" : `${ranks.length} are drawn`;
    const only = ranks.length < size ? `${which} of its ${size} singular values; bptt.products has them all. ` : "";
    return (
      `∂s(t)/∂s(k) for t = ${t + 1}, where s is the whole state of ${size} numbers. ${only}` +
      "A gradient that travels so far is stretched by at most the largest, and by at least the smallest."
    );
  });
