// The user's own network: losses, map (t, k), sums by lag, Jacobian products. Only where data are in the page, and then it
// is the scene that the page opens with. t and k are blocks of steps in the state, and steps in all text.
import { legend } from "../components/decades.js";
import { el } from "../components/dom.js";
import { formula } from "../components/formula.js";
import { heatmap } from "../components/heatmap.js";
import { choices, slider } from "../components/inputs.js";
import { lineChart } from "../components/lines.js";
import { show, showPower } from "../components/numbers.js";
import { sentence } from "../components/sentence.js";
import { choice, integer } from "../shell/fields.js";
import { block, blockName, cells, own, place, read } from "../shell/own.js";

const LAST = 4095; // of any sample: clamped to what there is
const DEEPEST = 12; // decades below the largest cell that have colours of their own
const PARAMETERS = [...new Set(own?.layers.flatMap((layer) => layer.parameters))];
const preferred = (names) => (names.includes("weight_hh") ? "weight_hh" : names[0]);

export const scene = {
  id: "own",
  order: 100,
  short: "Yours",
  title: "Your own network",
  mount,
  exists: () => own !== null,
  opens: true,
  fields:
    own === null
      ? {}
      : {
          own_layer: integer(
            Math.max(
              0,
              own.layers.findLastIndex(({ reverse }) => !reverse),
            ),
            { min: 0, max: own.layers.length - 1 },
          ),
          own_parameter: choice(preferred(PARAMETERS), PARAMETERS),
          own_sample: integer(0, { min: 0, max: own.samples.length - 1 }),
          own_t: integer(LAST, { min: 0, max: LAST }),
          own_k: integer(LAST, { min: 0, max: LAST }),
        },
};

// The cell under the mouse, [t, k]; it is shown instead of the chosen one.
let pointed = null;

// What the state chooses: {layer, sample, name of the parameter, map, t, k}; map is null where there is none.
function chosen(state) {
  const layer = own.layers[state.own_layer];
  const sample = layer.samples[state.own_sample];
  const name = has(layer, state.own_parameter) ? state.own_parameter : preferred(layer.parameters);
  const [row, column] = pointed ?? [state.own_t, state.own_k];
  const t = Math.min(row, sample.blocks - 1);
  const k = layer.reverse ? Math.max(t, Math.min(column, sample.blocks - 1)) : Math.min(column, t);
  return { layer, sample, name, t, k, map: sample.maps && decoded(sample.maps[name]) };
}

const has = (layer, name) => layer.parameters.includes(name);

const kept = new WeakMap();

// A map with its cells as numbers, and the ends of its colours.
function decoded(map) {
  if (!kept.has(map)) {
    const values = cells(map.cells);
    const finite = values.filter(Number.isFinite);
    const [least, most] = [
      finite.reduce((a, b) => Math.min(a, b), Infinity),
      finite.reduce((a, b) => Math.max(a, b), -Infinity),
    ];
    const low = Math.max(Math.floor(least), Math.ceil(most) - DEEPEST);
    const ends = finite.length
      ? { low, top: Math.max(Math.ceil(most), low + 1), below: least < low }
      : { low: -1, top: 0, below: false };
    const has = { zero: values.includes(-Infinity), NaN: values.some(Number.isNaN), infinite: values.includes(Infinity) };
    kept.set(map, { ...map, ...ends, values, has, lags: map.lags.map(read), shares: shares(map) });
  }
  return kept.get(map);
}

// {component: share of the lag sum in percent, by lag}; NaN where nothing is left.
function shares({ through }) {
  const names = Object.keys(through);
  const parts = names.map((name) => through[name].map(read));
  const total = (i) => parts.reduce((sum, part) => sum + part[i], 0);
  return Object.fromEntries(
    names.map((name, n) => [name, parts[n].map((part, i) => (total(i) > 0 ? (100 * part) / total(i) : null))]),
  );
}

function mount(root, page) {
  root.append(
    about(page),
    el("div", { class: "controls" }, menus(page)),
    words(page),
    part(page, "Losses L(t)", (state) => own.losses[state.own_sample] !== null, lossChart(page)),
    part(
      page,
      "The map (t, k): the size of each term",
      (state) => chosen(state).map !== null,
      el("div", { class: "formula" }, formula("\\frac{∂L(t)}{∂s(t)}", "\\frac{∂s(t)}{∂s(k)}", "\\frac{∂^+s(k)}{∂θ}")),
      el("div", { class: "map-and-cell" }, theMap(page), theCell(page)),
      legendOf(page),
      thinned(page),
    ),
    part(page, "How far back: the sums by lag", (state) => chosen(state).map !== null, lagChart(page), horizon(page)),
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
      ({ own_layer, own_sample }) => own.layers[own_layer].samples[own_sample].products !== null,
      productChart(page),
      productWords(page),
    ),
  );
}

function part(page, title, there, ...content) {
  const node = el("section", { class: "part", "aria-label": title }, el("h3", {}, title), content);
  page.follow((state) => (node.hidden = !there(state)));
  return node;
}

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

function menus(page) {
  const layers = own.layers.map((layer, i) => [i, layer.name]);
  const samples = own.samples.map((sample, i) => [i, `sample ${sample + 1}`]);
  return [
    menu(page, "Layer", "own_layer", layers, Number),
    choices(page, {
      label: "Parameter",
      field: "own_parameter",
      options: Object.fromEntries(PARAMETERS.map((name) => [name, name])),
      chosen: (state) => chosen(state).name,
      there: (name, state) => has(own.layers[state.own_layer], name), // a layer may have no bias
    }),
    menu(page, "Sample", "own_sample", samples, Number),
  ];
}

function menu(page, label, field, options, value) {
  const select = el(
    "select",
    { onchange: () => page.set({ [field]: value(select.value) }) },
    options.map(([name, said]) => el("option", { value: name }, said)),
  );
  page.follow((state) => (select.value = String(state[field])));
  return options.length < 2 ? null : el("label", { class: "menu" }, label, select);
}

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

const least = (values) => values.filter(Number.isFinite).reduce((a, b) => Math.min(a, b), Infinity);
const most = (values) => values.filter(Number.isFinite).reduce((a, b) => Math.max(a, b), -Infinity);

function middle(i, blocks, steps, counted) {
  const [from, to] = block(i, blocks, steps);
  return (from + to - 1) / 2 + counted;
}

const middles = (blocks, steps, counted) => Array.from({ length: blocks }, (_, i) => middle(i, blocks, steps, counted));

// The map -----------------------------------------------------------------------------------------------------------

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
        label: `Map of the terms of ${name}. ${cellText(state)}`,
      };
    },
    (t, k) => page.set({ own_t: t, own_k: k }),
    point,
  );

  function point(t, k) {
    const before = String(pointed);
    pointed = t === null ? null : [t, k];
    if (String(pointed) !== before) page.refresh();
  }
}

function cellText(state) {
  const { layer, sample, map, t, k } = chosen(state);
  const value = map.values[place(t, k, sample.blocks, layer.reverse)];
  const size = Number.isFinite(value) ? `≈ ${showPower(value)}` : showPower(value); // cells are kept to 1 %
  return `t = ${blockName(t, sample.blocks, sample.steps)}, k = ${blockName(k, sample.blocks, sample.steps)}: ${size}`;
}

function theCell(page) {
  const at = (field) => ({
    step: 1,
    read: (state) => chosen(state)[field],
    say: (value) => {
      const { sample } = chosen(page.get());
      return blockName(value, sample.blocks, sample.steps);
    },
  });
  const end = (state) => chosen(state).sample.blocks - 1;
  return el(
    "div",
    { class: "the-cell" },
    sentence(page, (state) => (chosen(state).map ? cellText(state) : ""), { class: "readout", "aria-live": "polite" }),
    sentence(page, lagText),
    slider(page, { ...at("t"), label: "Loss step t", min: 0, max: end, write: (t) => ({ own_t: t }) }),
    slider(page, {
      ...at("k"),
      label: "Earlier step k",
      write: (k) => ({ own_k: k }),
      min: (state) => (chosen(state).layer.reverse ? chosen(state).t : 0),
      max: (state) => (chosen(state).layer.reverse ? end(state) : chosen(state).t),
    }),
  );
}

const lagOf = ({ t, k }) => Math.abs(t - k);

function lagText(state) {
  const here = chosen(state);
  if (here.map === null) return "";
  const { sample, map } = here;
  const lag = lagOf(here);
  const parts = Object.entries(map.shares)
    .filter(([, values]) => values[lag] !== null)
    .map(([name, values]) => `${show(values[lag], 1)} % through ${name}`);
  const which = blockName(lag, sample.blocks, sample.steps, 0);
  const [lags, sizes] = which.includes("–")
    ? [`Lags ${which}`, "the sizes of each lag’s terms sum to at most"]
    : [`Lag ${which}`, "the sizes of all its terms sum to"];
  return `${lags}: ${sizes} ${show(map.lags[lag])}${parts.map((part) => `, ${part}`).join("")}`;
}

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
          values: values.map((value) => Math.log10(read(value))),
          class: `through-${i}`,
        })),
      ],
      marks: map.horizon === null ? [] : [{ at: map.horizon, text: `horizon ${map.horizon}` }],
      label: `Sums of the terms of ${layer.name} by lag, ${sample.steps} lags, from ${show(map.lags[0])} at lag 0 to ${show(map.lags.at(-1))}`,
    };
  });
}

const lagAxis = (here) => ({
  x: middles(here.sample.blocks, here.sample.steps, 0),
  first: 0,
  last: Math.max(1, here.sample.steps - 1),
  axis: here.layer.reverse ? "lag k − t in steps" : "lag t − k in steps",
  cursor: middle(lagOf(here), here.sample.blocks, here.sample.steps, 0),
});

const horizon = (page) =>
  sentence(page, (state) => {
    const { map } = chosen(state);
    if (map === null || map.horizon === null) return "";
    return `Memory horizon in this sequence: a loss step's gradient has less than 1 % of its norm beyond lag ${map.horizon}.`;
  });

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

function productChart(page) {
  return lineChart(page, (state) => {
    const {
      sample: { products },
      layer,
    } = chosen(state);
    if (products === null) return null;
    const lines = products.log10.map((values, i) => ({ ...rank(products, i), values: values.map(read) }));
    const largest = lines[0].values;
    return {
      x: products.lags,
      first: 0,
      last: Math.max(1, products.lags.at(-1)),
      log: true,
      lines,
      deepest: Math.max(DEEPEST, most(largest) - least(largest) + 3),
      axis: layer.reverse ? "lag k − t in steps" : "lag t − k in steps",
      label: `Singular values by lag; the largest goes from ${showPower(largest[0])} to ${showPower(largest.at(-1))}`,
    };
  });
}

function rank({ ranks, size }, i) {
  if (ranks[i] === 1) return { name: "largest", class: "rank-first" };
  if (ranks[i] === size) return { name: "smallest", class: "rank-last" };
  return { name: i === 1 ? "in between" : null, class: "rank-between" };
}

const productWords = (page) =>
  sentence(page, (state) => {
    const {
      sample: { products },
    } = chosen(state);
    if (products === null) return "";
    const { t, ranks, size } = products;
    const which = ranks.length === 1 ? "The largest is drawn" : `${ranks.length} are drawn`;
    const only = ranks.length < size ? `${which} of its ${size} singular values; bptt.products has them all. ` : "";
    return (
      `∂s(t)/∂s(k) for t = ${t + 1}, where s is the whole state of ${size} numbers. ${only}` +
      "A gradient that travels so far is stretched by at most the largest, and by at least the smallest."
    );
  });
