// Predict first: a question whose answer opens by predicting.
import { button } from "./inputs.js";
import { el } from "./dom.js";

// question: a text, or texts and nodes; options: texts; right: the index of the right one, or a function (state, results) → index; why: text or nodes, shown
// after the prediction whether it was right or not.
export function predictFirst(page, { question, options, right, why }) {
  const verdict = el("p", { class: "verdict" });
  const answer = el("div", { role: "status" });
  const explained = el("div", {}, verdict, why);
  const buttons = options.map((text, i) => button(text, () => predicted(i), { "aria-pressed": "false" }));

  function predicted(i) {
    const wanted = typeof right === "function" ? right(page.get(), page.results()) : right;
    buttons.forEach((each, j) => {
      each.setAttribute("aria-pressed", String(i === j));
      each.classList.toggle("right", j === wanted);
    });
    verdict.textContent = i === wanted ? "As you predicted." : `Not quite: ${options[wanted]}.`;
    answer.replaceChildren(explained);
  }

  const title = el("h3", {}, "Predict first");
  return el("aside", { class: "predict" }, title, el("p", {}, question), el("div", { class: "options" }, buttons), answer);
}
