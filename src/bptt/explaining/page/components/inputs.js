// What can be changed: number cells, matrices, sliders, choices. Each takes the scene's `page` and follows the state.
import { parseNumber } from "../shell/fields.js";
import { replaced } from "../shell/model.js";
import { el, uniqueName } from "./dom.js";
import { show } from "./numbers.js";

// One number. read(state) → number; write(value, state) → patch of the state; accepts(value) may refuse more.
// What is no finite number is marked, the state keeps the old value, and leaving the field brings it back.
// {node, update}: update(state) is to be called when the state changes.
export function numberCell(page, { label, read, write, accepts = () => true }) {
  const input = el("input", {
    class: "cell",
    type: "text",
    inputmode: "decimal",
    autocomplete: "off",
    spellcheck: "false",
    "aria-label": label,
    oninput: accept,
    onblur: restore,
    onkeydown: (event) => event.key === "Escape" && restore(),
  });

  function accept() {
    const value = parseNumber(input.value);
    const valid = value !== undefined && accepts(value);
    mark(!valid);
    if (valid) page.set(write(value, page.get()));
  }

  function restore() {
    mark(false);
    input.value = String(read(page.get()));
  }

  function mark(invalid) {
    if (invalid) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  }

  function update(state) {
    const untouched = parseNumber(input.value) === read(state) || input.getAttribute("aria-invalid") === "true";
    if (!untouched) input.value = String(read(state));
  }

  return { node: input, update };
}

// The cells of a matrix or vector of the state. field: its name; caption: a node or text; colour: "hx", "hh", "yh" or none;
// upright: a matrix is shown transposed, so that x(1), x(2), … stand as columns; heads: names over the columns.
export function matrixEditor(page, { field, caption, colour = "", upright = false, heads = null, accepts, hidden }) {
  const body = el("tbody");
  const titles = el("tr");
  const table = el("table", {}, el("thead", {}, titles), body);
  const node = el("figure", { class: `matrix ${colour}`, "data-field": field }, el("figcaption", {}, caption), table);
  let shape = "";
  let cells = [];

  function build(values) {
    const at = cellsOf(values, upright);
    cells = [];
    titles.replaceChildren(...(heads ? at[0].map((_, j) => el("th", { scope: "col" }, heads(j))) : []));
    body.replaceChildren(
      ...at.map((row) =>
        el(
          "tr",
          {},
          row.map((path) => el("td", {}, cell(path))),
        ),
      ),
    );
  }

  function cell(path) {
    const label = `${field.replace("_", " ")} ${path.map((i) => i + 1).join(", ")}`;
    const read = (state) => path.reduce((values, i) => values?.[i], state[field]) ?? 0;
    const write = (value, state) => ({ [field]: replaced(state[field], path, value) });
    cells.push(numberCell(page, { label, read, write, accepts }));
    return cells.at(-1).node;
  }

  page.follow((state) => {
    node.hidden = Boolean(hidden?.(state));
    const now = JSON.stringify(cellsOf(state[field], upright));
    if (now !== shape) build(state[field]);
    shape = now;
    for (const one of cells) one.update(state);
  });
  return node;
}

// The path of each entry, as rows of cells.
function cellsOf(values, upright) {
  if (!Array.isArray(values[0])) {
    const paths = values.map((_, i) => [i]);
    return upright ? [paths] : paths.map((path) => [path]);
  }
  const [rows, columns] = upright ? [values[0], values] : [values, values[0]];
  return rows.map((_, i) => columns.map((_, j) => (upright ? [j, i] : [i, j])));
}

// A slider with its value. min and max: numbers or functions of the state; say(value) → text.
export function slider(page, { label, min, max, step = 1, read, write, say = (value) => show(value, 2) }) {
  const name = uniqueName("slider");
  const bound = (limit, state) => (typeof limit === "function" ? limit(state) : limit);
  // The limits may have changed since the last frame.
  const within = (value, state) => Math.min(Math.max(value, bound(min, state)), bound(max, state));
  const output = el("output", { for: name, "aria-live": "off" }); // the slider says its value itself
  const input = el("input", {
    id: name,
    type: "range",
    step,
    oninput: () => page.set(write(within(Number(input.value), page.get()), page.get())),
  });
  page.follow((state) => {
    input.min = String(bound(min, state));
    input.max = String(bound(max, state));
    input.value = String(read(state));
    output.textContent = say(read(state));
    input.setAttribute("aria-valuetext", output.textContent);
  });
  return el("div", { class: "slider" }, el("label", { for: name }, label), input, output);
}

// One of several values of a field. options: {value: text}; chosen(state) → the value in force; there(value, state) → whether it
// can be chosen.
export function choices(page, { label, field, options, chosen = (state) => state[field], there = () => true }) {
  const name = uniqueName("choice");
  const buttons = Object.entries(options).map(([value, text]) => {
    const input = el("input", { type: "radio", name, value, onchange: () => page.set({ [field]: value }) });
    const node = el("label", {}, input, el("span", {}, text));
    page.follow((state) => {
      input.checked = chosen(state) === value;
      node.hidden = !there(value, state);
    });
    return node;
  });
  return el("fieldset", { class: "choices" }, el("legend", {}, label), el("div", {}, buttons));
}

export function button(text, onclick, attributes = {}) {
  return el("button", { type: "button", onclick, ...attributes }, text);
}
