// A paragraph that follows the state; it is hidden while there is nothing to say.
import { el } from "./dom.js";
/** @import { Attributes, Page, Results, State } from "../types.d.ts" */

/**
 * A paragraph of what make(state, results) says; hidden where that is "".
 * @type {(page: Page, make: (state: State, results: Results) => string, attributes?: Attributes) => HTMLElement}
 */
export function sentence(page, make, attributes = {}) {
  const node = el("p", attributes);
  page.follow((state, results) => {
    const now = make(state, results);
    node.hidden = now === "";
    if (node.textContent !== now) node.textContent = now;
  });
  return node;
}
