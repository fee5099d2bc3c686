// A paragraph that follows the state; it is hidden while there is nothing to say.
import { el } from "./dom.js";

// make(state, results) → text.
export function sentence(page, make, attributes = {}) {
  const node = el("p", attributes);
  page.follow((state, results) => {
    const now = make(state, results);
    node.hidden = now === "";
    if (node.textContent !== now) node.textContent = now;
  });
  return node;
}
