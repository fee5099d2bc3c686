// The header: the page's title, lecture mode, starting over, and the links to the scenes.
import { el } from "../components/dom.js";
import { button } from "../components/inputs.js";
import { LECTURE_NOTE } from "./lecture.js";
/** @import { PageHeader, Scene } from "../types.d.ts" */

/** @type {(scenes: Scene[], onReset: () => void, onLecture: () => void) => PageHeader} */
export function pageHeader(scenes, onReset, onLecture) {
  const links = scenes.map(linkTo);
  const lecture = button("Lecture mode", onLecture, {
    "aria-pressed": "false",
    title: "Larger; the arrow keys move between scenes and steps",
  });
  const note = el("p", { class: "lecture-note", role: "status" });
  const items = links.map((link) => el("li", {}, link));
  const node = el(
    "header",
    {},
    el("h1", {}, "Backpropagation through time"),
    el("div", { class: "tools" }, lecture, button("Start over", onReset)),
    el("nav", { "aria-label": "Scenes" }, el("ol", {}, items)),
    note,
  );
  return {
    node,
    show(id) {
      scenes.forEach((scene, i) => {
        if (scene.id === id) links[i].setAttribute("aria-current", "page");
        else links[i].removeAttribute("aria-current");
      });
    },
    update(state, address) {
      lecture.setAttribute("aria-pressed", String(state.lecture));
      const said = state.lecture ? LECTURE_NOTE : "";
      if (note.textContent !== said) note.textContent = said;
      scenes.forEach((scene, i) => links[i].setAttribute("href", address(scene.id)));
    },
  };
}

/** @type {(scene: Scene, i: number) => HTMLElement} */
function linkTo(scene, i) {
  const attributes = { href: `#${scene.id}`, "aria-label": `${i + 1} ${scene.title}` };
  return el("a", attributes, el("b", {}, i + 1), el("span", {}, scene.short));
}
