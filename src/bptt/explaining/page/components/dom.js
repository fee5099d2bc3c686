// Elements in one line: el("p", { class: "note", onclick }, "text", child). Attributes that are null or false are left
// out.

/** @import { Attributes, Children, Page, Pointed, Results, State } from "../types.d.ts" */

/**
 * How far each arrow key moves: rows down, columns to the right.
 * @type {Record<string, [number, number] | undefined>}
 */
export const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

const SVG = "http://www.w3.org/2000/svg";

/**
 * @type {<Tag extends keyof HTMLElementTagNameMap>(tag: Tag, attributes?: Attributes, ...children: Children) =>
 *   HTMLElementTagNameMap[Tag]}
 */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/**
 * @type {<Tag extends keyof SVGElementTagNameMap>(tag: Tag, attributes?: Attributes, ...children: Children) =>
 *   SVGElementTagNameMap[Tag]}
 */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/**
 * Gives the node its attributes, listeners and children, and returns it.
 * @type {<E extends Element>(node: E, attributes: Attributes, children: Children) => E}
 */
export function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(name, value === true ? "" : String(value));
  }
  const present = children.flat().filter((child) => child !== null && child !== undefined);
  node.append(.../** @type {(string | Node)[]} */ (present));
  return node;
}

let names = 0;

/**
 * A name that is used once on the page, for labels and descriptions.
 * @type {(stem: string) => string}
 */
export function uniqueName(stem) {
  names += 1;
  return `${stem}-${names}`;
}

/**
 * Calls draw(width of the host in CSS pixels, …) as `page.follow` does, and whenever the width changes; 0 while it is
 * not known. Returns a function that gives the width.
 * @type {(page: Page, host: HTMLElement, draw: (width: number, state: State, results: Results) => void) =>
 *   () => number}
 */
export function followWide(page, host, draw) {
  let width = 0;
  page.follow((state, results) => draw(width, state, results));
  new ResizeObserver(() => {
    const now = Math.floor(host.clientWidth);
    if (now === 0 || now === width) return;
    width = now;
    page.refresh();
  }).observe(host);
  return () => width;
}

/**
 * What the mouse or the focus is on, for as long as it is; the page repaints when it changes.
 * @type {<V>(page: Page, none: V) => Pointed<V>}
 */
export function pointer(page, none) {
  let now = none;
  /** @type {(value: typeof none) => void} */
  const at = (value) => {
    now = value;
    page.refresh();
  };
  return {
    now: () => now,
    at,
    on: (value) => ({
      onpointerenter: () => at(value),
      onpointerleave: () => at(none),
      onfocus: () => at(value),
      onblur: () => at(none),
    }),
  };
}
