// Predict first: a question whose answer opens by predicting. What was predicted is state, so that it is in the
// address; the page collects the questions that its scenes ask (`page.ask`), and scene 9 shows them all.
import { predicted } from "../shell/predictions.js";
import { button } from "./inputs.js";
import { el } from "./dom.js";
/** @import { Page, Prediction, Question } from "../types.d.ts" */

/**
 * A question with its options; the answer opens when one is chosen. right: the index of the right option; why: shown
 * after the prediction, whether it was right or not. A scene has one question at most.
 * @type {(page: Page, asked: Question & { right: number, why: Node | Node[] }) => HTMLElement}
 */
export function predictFirst(page, { question, options, right, why }) {
  const verdict = el("p", { class: "verdict" });
  const answer = el("div", { role: "status" });
  const explained = el("div", {}, verdict, ...[why].flat());
  const buttons = options.map((text, i) => button(text, () => predict(i), { "aria-pressed": "false" }));
  let said = "";

  /** @type {(i: number) => void} */
  function predict(i) {
    page.set((state) => predicted(state, page.id, i, right));
  }

  page.ask({ question, options });
  page.follow(({ predictions }) => {
    const made = answered(predictions[page.id], options);
    buttons.forEach((each, j) => {
      each.setAttribute("aria-pressed", String(made?.last === j));
      each.classList.toggle("right", made?.right === j);
    });
    const now = made ? (made.last === made.right ? "As you predicted." : `Not quite: ${options[made.right]}.`) : "";
    if (now === said) return;
    said = verdict.textContent = now;
    answer.replaceChildren(...(made ? [explained] : []));
  });

  const title = el("h3", {}, "Predict first");
  return el(
    "aside",
    { class: "predict" },
    title,
    el("p", {}, ...[question].flat()),
    el("div", { class: "options" }, buttons),
    answer,
  );
}

/**
 * The prediction, if it is one of these options; an address may hold anything.
 * @type {(made: Prediction | undefined, options: string[]) => Prediction | undefined}
 */
export function answered(made, options) {
  return made && Math.max(made.first, made.last, made.right) < options.length ? made : undefined;
}
