// What can be changed: number cells, matrices, sliders, choices. Each takes the scene's `page` and follows the state.
import { parseNumber } from "../shell/fields.js";
import { replaced } from "../shell/model.js";
import { el, uniqueName } from "./dom.js";
import { show } from "./numbers.js";
/** @import { Attributes, FieldsOf, Page, Parameter, Patch, State } from "../types.d.ts" */

/**
 * The field of one number; accepts(value) may refuse finite numbers too. What is no finite number is marked, the
 * state keeps the old value, and leaving the field brings it back. update(state) is to be called when the state
 * changes.
 * @type {(page: Page, options: NumberOptions) => { node: HTMLElement, update: (state: State) => void }}
 * @typedef {object} NumberOptions
 * @property {string} label
 * @property {(state: State) => number} read
 * @property {(value: number, state: State) => Patch} write
 * @property {(value: number) => boolean} [accepts]
 */
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

  /** @type {(invalid: boolean) => void} */
  function mark(invalid) {
    if (invalid) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  }

  /** @type {(state: State) => void} */
  function update(state) {
    const untouched = parseNumber(input.value) === read(state) || input.getAttribute("aria-invalid") === "true";
    if (!untouched) input.value = String(read(state));
  }

  return { node: input, update };
}

/**
 * The cells of a matrix or vector of the state. colour: a class, "hx", "hh", "yh" or none; upright: a matrix is
 * shown transposed, so that x(1), x(2), … stand as columns; heads: names over the columns.
 * @type {(page: Page, options: MatrixOptions) => HTMLElement}
 * @typedef {object} MatrixOptions
 * @property {FieldsOf<Parameter>} field
 * @property {Node | string} caption
 * @property {string} [colour]
 * @property {boolean} [upright]
 * @property {(column: number) => string} [heads]
 * @property {(value: number) => boolean} [accepts]
 * @property {(state: State) => boolean} [hidden]
 */
export function matrixEditor(page, { field, caption, colour = "", upright = false, heads, accepts, hidden }) {
  const body = el("tbody");
  const titles = el("tr");
  const table = el("table", {}, el("thead", {}, titles), body);
  const node = el("figure", { class: `matrix ${colour}`, "data-field": field }, el("figcaption", {}, caption), table);
  let shape = "";
  /** @type {ReturnType<typeof numberCell>[]} */
  let cells = [];

  /** @type {(values: Parameter) => void} */
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

  /** @type {(path: number[]) => HTMLElement} */
  function cell(path) {
    const one = numberCell(page, {
      label: `${field.replace("_", " ")} ${path.map((i) => i + 1).join(", ")}`,
      read: (state) => path.reduce((/** @type {any} */ values, i) => values?.[i], state[field]) ?? 0,
      write: (value, state) => ({ [field]: replaced(/** @type {Parameter} */ (state[field]), path, value) }),
      accepts,
    });
    cells.push(one);
    return one.node;
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

/**
 * The path of each entry, [i] or [i, j], as rows of cells.
 * @type {(values: Parameter, upright: boolean) => number[][][]}
 */
function cellsOf(values, upright) {
  const first = values[0];
  if (!Array.isArray(first)) {
    const paths = values.map((_, i) => [i]);
    return upright ? [paths] : paths.map((path) => [path]);
  }
  const [rows, columns] = upright ? [first, values] : [values, first];
  return rows.map((_, i) => columns.map((_, j) => (upright ? [j, i] : [i, j])));
}

/**
 * A slider with its value, which `say` turns into text.
 * @type {(page: Page, options: SliderOptions) => HTMLElement}
 * @typedef {number | ((state: State) => number)} Limit
 * @typedef {object} SliderOptions
 * @property {string | Element} label
 * @property {Limit} min
 * @property {Limit} max
 * @property {number} [step]
 * @property {(state: State) => number} read
 * @property {(value: number, state: State) => Patch} write
 * @property {(value: number) => string} [say]
 */
export function slider(
  page,
  { label, min, max, step = 1, read, write, say = (/** @type {number} */ value) => show(value, 2) },
) {
  const name = uniqueName("slider");
  /** @type {(limit: Limit, state: State) => number} */
  const bound = (limit, state) => (typeof limit === "function" ? limit(state) : limit);
  // The limits may have changed since the last frame.
  /** @type {(value: number, state: State) => number} */
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

/**
 * Radio buttons for the values of a field. options: {value: text}; chosen(state): the value in force; there(value,
 * state): whether it can be chosen.
 * @type {(page: Page, options: ChoiceOptions) => HTMLElement}
 * @typedef {object} ChoiceOptions
 * @property {string | (string | Node)[]} label
 * @property {FieldsOf<string>} field
 * @property {Record<string, string>} options
 * @property {(state: State) => string} [chosen]
 * @property {(value: string, state: State) => boolean} [there]
 */
export function choices(
  page,
  { label, field, options, chosen = (/** @type {State} */ state) => state[field], there = () => true },
) {
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

/** @type {(text: string | Node, onclick: () => void, attributes?: Attributes) => HTMLButtonElement} */
export function button(text, onclick, attributes = {}) {
  return el("button", { type: "button", onclick, ...attributes }, text);
}
