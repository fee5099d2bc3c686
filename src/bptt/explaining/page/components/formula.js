// Formulas as MathML, which browsers draw and read aloud without a library. They are written in a few words of TeX:
//   letters, digits and Unicode signs as they are; a_b a^b a_{bc}; \frac{a}{b}; \sum_{k=1}^{t} and \prod;
//   \text{some~words}; \fn{softmax} upright; \matrix{1, 2; 3, 4}; \hx{…} \hh{…} \yh{…} \lag{…} in the matrix's colour.
// `formula` takes chunks: a line may break between them.
import { el, filled } from "./dom.js";
import { show } from "./numbers.js";
/** @import { Attributes, Children, Page, Parameter, Results, State } from "../types.d.ts" */

const MATHML = "http://www.w3.org/1998/Math/MathML";
const TOKEN = /\\[a-z]+|\d+(?:\.\d+)?(?:·10[⁻⁰¹²³⁴-⁹]+)?|\p{L}\p{M}*|[^\s]/gu;
const COLOURED = ["hx", "hh", "yh", "lag"];

/** @type {(tag: string, attributes?: Attributes, ...children: Children) => Element} */
function m(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(MATHML, tag), attributes, children);
}

/** @type {(...chunks: string[]) => HTMLElement} */
export function formula(...chunks) {
  return el(
    "span",
    { class: "formula" },
    chunks.map((chunk) => maths(chunk)),
  );
}

/**
 * One <math> element that shows a formula.
 * @type {(text: string) => Element}
 */
export function maths(text) {
  return m("math", { displaystyle: "true" }, parse(text));
}

/**
 * A formula that follows the state: make(state, results) gives its chunks, and only those that have changed are
 * replaced.
 * @type {(page: Page, make: (state: State, results: Results) => string[]) => HTMLElement}
 */
export function liveFormula(page, make) {
  const node = el("div", { class: "formula live" });
  /** @type {string[]} */
  let before = [];
  page.follow((state, results) => {
    const chunks = make(state, results);
    chunks.forEach((chunk, i) => {
      if (i >= before.length) node.append(maths(chunk));
      else if (chunk !== before[i]) node.children[i].replaceWith(maths(chunk));
    });
    while (node.children.length > chunks.length) node.children[chunks.length].remove();
    before = chunks;
  });
  return node;
}

/** @type {(text: string) => Element} */
function parse(text) {
  const tokens = text.match(TOKEN) ?? [];
  return sequence(tokens, null);
}

/**
 * The tokens up to `end` as one row, with their indices attached.
 * @type {(tokens: string[], end: string | null) => Element}
 */
function sequence(tokens, end) {
  /** @type {Element[]} */
  const parts = [];
  while (tokens.length && tokens[0] !== end) {
    const base = atom(tokens);
    parts.push(scripted(base, tokens));
  }
  if (end !== null) tokens.shift();
  return parts.length === 1 ? parts[0] : m("mrow", {}, parts);
}

/** @type {(base: Element, tokens: string[]) => Element} */
function scripted(base, tokens) {
  /** @type {Record<string, Element | undefined>} */
  const scripts = {};
  while (tokens[0] === "_" || tokens[0] === "^") {
    const sign = taken(tokens);
    scripts[sign] = atom(tokens);
  }
  const { _: below, "^": above } = scripts;
  const [sub, sup, both] = /^[∑∏]$/.test(base.textContent ?? "")
    ? ["munder", "mover", "munderover"]
    : ["msub", "msup", "msubsup"];
  if (below && above) return m(both, {}, base, below, above);
  if (below) return m(sub, {}, base, below);
  return above ? m(sup, {}, base, above) : base;
}

/** @type {(tokens: string[]) => Element} */
function atom(tokens) {
  const token = taken(tokens);
  if (token === "{") return sequence(tokens, "}");
  if (token.startsWith("\\") && token.length > 1) return command(token.slice(1), tokens);
  if (/^\d/.test(token)) return m("mn", {}, token);
  if (/^\p{L}/u.test(token) || token === "∞") return m("mi", token === "∂" ? { mathvariant: "normal" } : {}, token);
  const spacing = /^[+=]$/.test(token) ? { form: "infix" } : /^[()[\]]$/.test(token) ? { stretchy: "false" } : {};
  return m("mo", spacing, token === "-" ? "−" : token);
}

/** @type {(tokens: string[]) => string} */
function taken(tokens) {
  const token = tokens.shift();
  if (token === undefined) throw new Error("formula: it ends too early");
  return token;
}

/** @type {(name: string, tokens: string[]) => Element} */
function command(name, tokens) {
  if (COLOURED.includes(name)) return m("mrow", { class: name }, group(tokens));
  switch (name) {
    case "frac":
      return m("mfrac", {}, group(tokens), group(tokens));
    case "sum":
      return m("mo", {}, "∑");
    case "prod":
      return m("mo", {}, "∏");
    case "text":
      return m("mtext", {}, words(tokens));
    case "fn":
      return m("mi", { mathvariant: "normal" }, words(tokens));
    case "matrix":
      return table(tokens);
    default:
      throw new Error(`formula: unknown command \\${name}`);
  }
}

/** @type {(tokens: string[]) => Element} */
function group(tokens) {
  if (tokens.shift() !== "{") throw new Error("formula: a { was expected");
  return sequence(tokens, "}");
}

/**
 * The tokens between this { and its }.
 * @type {(tokens: string[]) => string[]}
 */
function inside(tokens) {
  if (tokens.shift() !== "{") throw new Error("formula: a { was expected");
  let depth = 1;
  const end = tokens.findIndex((token) => (depth += token === "{" ? 1 : token === "}" ? -1 : 0) === 0);
  return tokens.splice(0, end + 1).slice(0, -1);
}

/**
 * The text between this { and its }. Spaces are lost among the tokens: ~ stands for one.
 * @type {(tokens: string[]) => string}
 */
function words(tokens) {
  return inside(tokens).join("").replaceAll("~", "\u00a0");
}

/** @type {(tokens: string[]) => Element} */
function table(tokens) {
  /** @type {string[]} */
  let cell = [];
  let row = [cell];
  const rows = [row];
  for (const token of inside(tokens)) {
    if (token === ";") rows.push((row = [(cell = [])]));
    else if (token === ",") row.push((cell = []));
    else cell.push(token);
  }
  /** @type {(row: string[][]) => Element[]} */
  const cells = (row) => row.map((cell) => m("mtd", {}, sequence(cell, null)));
  return m(
    "mtable",
    {},
    rows.map((row) => m("mtr", {}, cells(row))),
  ); // the style draws the brackets
}

/**
 * The text of \matrix for entries that `say` turns into text: a vector stands upright.
 * @type {<E extends string | number>(values: (E | E[])[], say: (entry: E) => string) => string}
 */
export function matrixText(values, say) {
  const rows = values.map((row) => (Array.isArray(row) ? row.map((value) => say(value)).join(", ") : say(row)));
  return `\\matrix{${rows.join("; ")}}`;
}

/**
 * The text of \matrix for numbers, as `show` writes them.
 * @type {(values: Parameter) => string}
 */
export function numbersOf(values) {
  return matrixText(values, show);
}
