// The matrix whose terms (t, k) are shown, and how far their sum is from the gradient by backpropagation.
import { el } from "./dom.js";
import { maths } from "./formula.js";
import { show } from "./numbers.js";

// options: {value: formula}; chosen(state, results) → the value in force; there(value, state, results) → whether it can be chosen.
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
    page.follow((state, results) => {
      one.hidden = !there(name, state, results);
      one.setAttribute("aria-pressed", String(chosen(state, results) === name));
    });
    return one;
  });
  return el("div", { class: "terms-of" }, el("span", {}, "Terms of "), buttons);
}

// apart(state, results) → {distance: of engine/terms.js, matrices: how many parameters}; of: what differs from backpropagation.
export function differenceBadge(page, of, apart) {
  const badge = el("p", { class: "badge" });
  page.follow((state, results) => {
    const { distance, matrices } = apart(state, results);
    const text = Number.isFinite(distance)
      ? `${of} differs from backpropagation by at most ${distance === 0 ? "0" : show(distance)} of the largest term, over all ${matrices} parameters.`
      : "Something in the gradient is infinite or NaN: it cannot be compared with backpropagation.";
    if (badge.textContent !== text) badge.textContent = text;
  });
  return badge;
}
