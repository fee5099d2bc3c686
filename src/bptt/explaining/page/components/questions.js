// The questions of all scenes, which of them were predicted, and the score.
import { score } from "../shell/predictions.js";
import { el } from "./dom.js";
import { answered } from "./predict.js";

const MARKS = { open: "?", right: "✓", wrong: "✗" };

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
    const now = sentence(score({ predictions: Object.fromEntries(results.map((made, i) => [scenes[i], made])) }, scenes));
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

function item({ scene, question, options }) {
  const [mark, verdict] = [el("b", { "aria-hidden": "true" }), el("span", { class: "verdict" })];
  const text = [question].flat().map((part) => (typeof part === "string" ? part : part.cloneNode(true)));
  const link = el("a", {}, scene.title);
  const node = el("li", {}, mark, el("div", {}, el("p", {}, text), el("p", { class: "place" }, link, verdict)));
  function update(made, kind, address) {
    link.setAttribute("href", address);
    node.className = kind;
    mark.textContent = MARKS[kind];
    verdict.textContent = {
      open: "not predicted yet",
      right: `as you predicted: ${options[made?.right]}`,
      wrong: `you predicted ${options[made?.first]}, the answer is ${options[made?.right]}`,
    }[kind];
  }
  return { node, update };
}

const kindOf = (made) => (made ? (made.first === made.right ? "right" : "wrong") : "open");

function sentence({ asked, predicted, right }) {
  if (predicted === 0) return `${asked} questions wait for a prediction.`;
  return `${predicted} of ${asked} predicted, ${right} of them right at the first try.`;
}
