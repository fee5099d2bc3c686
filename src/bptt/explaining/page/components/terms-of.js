// The matrix whose terms (t, k) are shown, and how far their sum is from the gradient by backpropagation.
import { el } from "./dom.js";
import { maths } from "./formula.js";
import { show } from "./numbers.js";
/** @import { FieldsOf, Page, State } from "../types.d.ts" */

/**
 * Buttons to choose the parameter whose terms are shown. options: {name: formula}; chosen(state): the one in force;
 * there(name, state): whether it can be chosen.
 * @type {(page: Page, options: TermsOptions) => HTMLElement}
 * @typedef {object} TermsOptions
 * @property {FieldsOf<string>} field
 * @property {Record<string, string>} options
 * @property {(state: State) => string} chosen
 * @property {(name: string, state: State) => boolean} [there]
 */
export function termsOf(page, { field, options, chosen, there = () => true }) {
  const buttons = Object.entries(options).map(([name, text]) => {
    const one = el(
      "button",
      {
        type: "button",
        class: "pin",
        "aria-label": `Terms of ${name.replace("_", " ")}`,
        onclick: () => page.set({ [field]: name }),
      },
      maths(text),
    );
    page.follow((state) => {
      one.hidden = !there(name, state);
      one.setAttribute("aria-pressed", String(chosen(state) === name));
    });
    return one;
  });
  return el("div", { class: "terms-of" }, el("span", {}, "Terms of "), buttons);
}

/**
 * A sentence that says how far `of`, a sum of terms, is from the gradient by backpropagation. distance: that of
 * engine/terms.js; matrices: how many parameters it is over.
 * @type {(page: Page, of: string, apart: (state: State) => { distance: number, matrices: number }) => HTMLElement}
 */
export function differenceBadge(page, of, apart) {
  const badge = el("p", { class: "badge" });
  page.follow((state) => {
    const { distance, matrices } = apart(state);
    const text = Number.isFinite(distance)
      ? `${of} differs from backpropagation by at most ${distance === 0 ? "0" : show(distance)} of the largest term, over all ${matrices} parameters.`
      : "Something in the gradient is infinite or NaN: it cannot be compared with backpropagation.";
    if (badge.textContent !== text) badge.textContent = text;
  });
  return badge;
}
