// The questions of all scenes, which of them were predicted, and the score.
import { score } from "../shell/predictions.js";
import { el } from "./dom.js";
import { answered } from "./predict.js";
/** @import { AskedQuestion, Page, Prediction } from "../types.d.ts" */

const MARKS = { open: "?", right: "✓", wrong: "✗" };

/** @type {(page: Page) => HTMLElement} */
export function questionList(page) {
  const questions = page.questions();
  const scenes = questions.map(({ scene }) => scene.id);
  const items = questions.map(item);
  const said = el("p", { class: "said", role: "status" });
  const marks = el(
    "ol",
    { class: "marks", "aria-hidden": "true" },
    scenes.map(() => el("li")),
  );

  page.follow((state) => {
    const results = questions.map(({ scene, options }) => answered(state.predictions[scene.id], options));
    results.forEach((made, i) => {
      const kind = kindOf(made);
      items[i].update(made, kind, page.address(scenes[i]));
      marks.children[i].className = kind;
      marks.children[i].textContent = MARKS[kind];
    });
    const now = sentence(
      score({ predictions: Object.fromEntries(results.map((made, i) => [scenes[i], made])) }, scenes),
    );
    if (said.textContent !== now) said.textContent = now;
  });
  return el(
    "div",
    {},
    marks,
    said,
    el(
      "ol",
      { class: "questions" },
      items.map((one) => one.node),
    ),
  );
}

/**
 * @type {(asked: AskedQuestion) =>
 *   { node: HTMLElement, update: (made: Prediction | undefined, kind: Kind, address: string) => void }}
 * @typedef {"open" | "right" | "wrong"} Kind
 */
function item({ scene, question, options }) {
  const [mark, verdict] = [el("b", { "aria-hidden": "true" }), el("span", { class: "verdict" })];
  const text = [question].flat().map((part) => (typeof part === "string" ? part : part.cloneNode(true)));
  const link = el("a", {}, scene.title);
  const node = el("li", {}, mark, el("div", {}, el("p", {}, text), el("p", { class: "place" }, link, verdict)));
  /** @type {(made: Prediction | undefined, kind: Kind, address: string) => void} */
  function update(made, kind, address) {
    link.setAttribute("href", address);
    node.className = kind;
    mark.textContent = MARKS[kind];
    verdict.textContent = verdictOf(made, options);
  }
  return { node, update };
}

/** @type {(made: Prediction | undefined) => Kind} */
const kindOf = (made) => (made ? (made.first === made.right ? "right" : "wrong") : "open");

/** @type {(made: Prediction | undefined, options: string[]) => string} */
function verdictOf(made, options) {
  if (!made) return "not predicted yet";
  const right = options[made.right];
  return made.first === made.right
    ? `as you predicted: ${right}`
    : `you predicted ${options[made.first]}, the answer is ${right}`;
}

/** @type {(score: { asked: number, predicted: number, right: number }) => string} */
function sentence({ asked, predicted, right }) {
  if (predicted === 0) return `${asked} questions wait for a prediction.`;
  return `${predicted} of ${asked} predicted, ${right} of them right at the first try.`;
}
