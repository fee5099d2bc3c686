// "Show this in PyTorch": a program with the page's own numbers, and the digits that it prints.
import { el } from "./dom.js";
import { button } from "./inputs.js";
/** @import { Follower, Page, Program, Results, State } from "../types.d.ts" */

/** @type {(page: Page, make: (state: State, results: Results) => Program) => HTMLElement} */
export function codeBlock(page, make) {
  const code = el("code");
  const prints = el("code");
  const copy = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      copy.textContent = "Copied";
    } catch {
      getSelection()?.selectAllChildren(code); // no right to the clipboard: it is ready for the keyboard
    }
  });
  const details = el(
    "details",
    { class: "pytorch" },
    el("summary", {}, "Show this in PyTorch"),
    el("pre", { tabindex: "0", "aria-label": "Program" }, code),
    copy,
    el("p", {}, "It prints"),
    el("pre", { class: "prints", tabindex: "0", "aria-label": "What it prints" }, prints),
  );
  /** @type {Follower} */
  const update = (state, results) => {
    if (!details.open) return;
    const made = make(state, results);
    code.textContent = made.code;
    prints.textContent = made.prints;
    copy.textContent = "Copy";
  };
  details.addEventListener("toggle", () => update(page.get(), page.results()));
  page.follow(update);
  return details;
}
