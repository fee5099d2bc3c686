// A scene's section: its content is made when it is first shown, and follows the state for as long as it is visible.
import { codeBlock } from "../components/code.js";
import { el } from "../components/dom.js";
import { results } from "./model.js";
/** @import { Follower, Page, Patch, Question, Scene, SceneView, State, Store } from "../types.d.ts" */

/** @type {(scene: Scene, store: Store, shared: Pick<Page, "questions" | "address">) => SceneView} */
export function sceneView(scene, store, { questions, address }) {
  /** @type {Follower[]} */
  const followers = [];
  /** @type {Question[]} */
  const asked = [];
  /** @type {((state: State, by: number) => Patch) | null} */
  let steps = null;
  let mounted = false;
  const { section, heading, body, link } = sectionOf(scene, address);
  /** @type {Page} */
  const page = {
    id: scene.id,
    get: store.get,
    set: store.set,
    results: () => results(store.get()),
    follow: (follower) => followers.push(follower),
    refresh: () => update(),
    steps: (patch) => (steps = patch),
    ask: (question) => asked.push(question),
    questions,
    address,
  };

  function update() {
    const state = store.get();
    if (mounted && !section.hidden) for (const follower of [...followers]) follower(state, results(state));
  }

  function mount() {
    if (!mounted) make();
    update();
  }

  function make() {
    mounted = true;
    scene.mount(body, page);
    if (scene.pytorch) body.append(codeBlock(page, scene.pytorch));
  }

  /** @type {(by: number) => boolean} */
  function step(by) {
    const patch = steps;
    if (patch) store.set((state) => patch(state, by));
    return patch !== null;
  }

  return { scene, section, heading, asked, mount, update, link, step };
}

/**
 * The empty section with its heading and the links to the neighbouring scenes.
 * @type {(scene: Scene, address: (id: string) => string) =>
 *   Pick<SceneView, "section" | "heading" | "link"> & { body: HTMLElement }}
 */
function sectionOf(scene, address) {
  const heading = el("h2", { tabindex: "-1", id: `title-${scene.id}` }, scene.title);
  const [before, after] = [el("a", { rel: "prev" }), el("a", { rel: "next" })];
  const body = el("div", { class: "scene-body" });
  const section = el(
    "section",
    { id: `scene-${scene.id}`, class: "scene", "aria-labelledby": `title-${scene.id}`, hidden: true },
    heading,
    body,
    el("nav", { class: "neighbours", "aria-label": "Neighbouring scenes" }, before, after),
  );

  /** @type {(node: HTMLElement, other: Scene | undefined, text: string) => void} */
  function lead(node, other, text) {
    node.hidden = !other;
    if (other) node.setAttribute("href", address(other.id));
    if (node.textContent !== text) node.textContent = text;
  }

  /** @type {SceneView["link"]} */
  function link(previous, next) {
    lead(before, previous, `← ${previous?.title}`);
    lead(after, next, `${next?.title} →`);
  }

  return { section, heading, body, link };
}
