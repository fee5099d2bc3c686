// The page: header, one section a scene, the address, the keyboard. Scenes know nothing of it but the `page` they get.
import { el } from "../components/dom.js";
import { flag } from "./fields.js";
import { pageHeader } from "./header.js";
import { decode, encode, initialState } from "./link.js";
import { lectureKeys } from "./lecture.js";
import { FIELDS, consistent, results } from "./model.js";
import { predictions } from "./predictions.js";
import { sceneView } from "./scene-view.js";
import { createStore } from "./store.js";
/**
 * @import {
 *   AskedQuestion, Fields, PageHeader, Results, Scene, SceneView, Shown, State, Store
 * } from "../types.d.ts"
 */

const UNREADABLE = "The numbers in this address could not be read: the page starts with its own.";
const UNKNOWN = "There is no such scene: this is where the page starts.";

/**
 * Fills `root` with the page of these scenes. What it returns is for tests.
 * @type {(root: HTMLElement, all: Scene[]) => { store: Store, results: () => Results, scenes: Scene[] }}
 */
export function start(root, all) {
  const scenes = all.filter((scene) => scene.exists?.() ?? true).sort((a, b) => a.order - b.order);
  const fields = allFields(scenes);
  const store = createStore(/** @type {State} */ (initialState(fields)));
  /** @type {(id: string) => string} */
  const address = (id) => encode(id, store.get(), fields);
  const notice = el("p", { class: "notice", role: "status", hidden: true });
  /** @type {SceneView[]} */
  const views = scenes.map((scene) => sceneView(scene, store, { questions: () => questionsOf(views), address }));
  const header = pageHeader(scenes, startOver, () => store.set(({ lecture }) => ({ lecture: !lecture })));
  root.append(header.node, notice, el("main", {}, ...views.map((one) => one.section)));
  const shown = oneShown(views, header);

  /** @type {(hash: string, focus: boolean) => void} */
  function open(hash, focus) {
    const found = understood(hash, scenes, fields);
    notice.hidden = found.wrong === "";
    notice.textContent = found.wrong;
    shown.show(found.id, focus);
    store.set(found.state);
  }

  // To the scene `by` places further, if there is one.
  /** @type {(by: number) => boolean} */
  function move(by) {
    const next = scenes[scenes.indexOf(shown.view().scene) + by];
    if (!next) return true;
    history.pushState(null, "", address(next.id)); // unlike location.hash it acts at once: keys may come fast
    open(location.hash, true);
    return true;
  }

  function startOver() {
    notice.hidden = true;
    store.set(/** @type {State} */ (initialState(fields)));
  }

  store.subscribe(repainting(store, views, header, shown, address));
  // Not location.hash: the old address may have been written over the new one before the event came.
  window.addEventListener("hashchange", (event) => open(new URL(event.newURL).hash, true));
  lectureKeys({
    on: () => store.get().lecture,
    scene: move,
    step: (by) => shown.view().step(by),
    leave: () => store.set({ lecture: false }),
  });
  open(location.hash, false);
  return { store, results: () => results(store.get()), scenes };
}

/**
 * The scene and the state that an address stands for; wrong: what is wrong with it, in a sentence, or "".
 * @type {(hash: string, scenes: Scene[], fields: Fields) => { id: string, state: State, wrong: string }}
 */
function understood(hash, scenes, fields) {
  const { scene: id, state, broken } = decode(hash, fields, consistent);
  const known = scenes.some((scene) => scene.id === id);
  const first = scenes.find((scene) => scene.opens) ?? scenes[0];
  const unknown = known || id === "" ? "" : UNKNOWN;
  return { id: known ? id : first.id, state: /** @type {State} */ (state), wrong: broken ? UNREADABLE : unknown };
}

/**
 * The fields of the whole state by name. Throws if a scene takes a name that is taken.
 * @type {(scenes: Scene[]) => Fields}
 */
function allFields(scenes) {
  /** @type {Fields} */
  const fields = { ...FIELDS, lecture: flag(false), predictions };
  for (const scene of scenes) {
    for (const [name, field] of Object.entries(scene.fields ?? {})) {
      if (Object.hasOwn(fields, name)) throw new Error(`scene ${scene.id}: there is a field ${name} already`);
      fields[name] = field;
    }
  }
  return fields;
}

/**
 * The questions of all scenes. A scene asks when its content is made, so all of them are made.
 * @type {(views: SceneView[]) => AskedQuestion[]}
 */
function questionsOf(views) {
  for (const one of views) one.mount();
  return views.flatMap((one) => one.asked.map((question) => ({ scene: one.scene, ...question })));
}

/**
 * Keeps one scene visible. show(id, focus): whether its heading takes the focus; view(): the one that is visible.
 * @type {(views: SceneView[], header: PageHeader) => Shown}
 */
function oneShown(views, header) {
  /** @type {SceneView | undefined} */
  let current;
  return {
    view: () => /** @type {SceneView} */ (current),
    show(id, focus) {
      const changed = current?.scene.id !== id;
      const next = /** @type {SceneView} */ (views.find((one) => one.scene.id === id));
      current = next;
      for (const one of views) one.section.hidden = one !== next;
      header.show(id);
      document.title = `${next.scene.title} · Backpropagation through time`;
      if (changed && focus) {
        window.scrollTo(0, 0);
        next.heading.focus({ preventScroll: true });
      }
      next.mount();
    },
  };
}

/**
 * A function that brings the page up to the state at the next frame, and its address a little later.
 * @type {(store: Store, views: SceneView[], header: PageHeader, shown: Shown, address: (id: string) => string) =>
 *   () => void}
 */
function repainting(store, views, header, shown, address) {
  const remember = afterPause(() => {
    const now = address(shown.view().scene.id);
    if (location.hash !== now) history.replaceState(null, "", now);
  });
  return oncePerFrame(() => {
    const state = store.get();
    document.documentElement.classList.toggle("lecture", state.lecture);
    header.update(state, address);
    views.forEach((one, i) => one.link(views[i - 1]?.scene, views[i + 1]?.scene));
    shown.view().update();
    remember();
  });
}

/** @type {(work: () => void) => () => void} */
function oncePerFrame(work) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      work();
    });
  };
}

// Browsers allow few changes of the address a second.
/** @type {(work: () => void) => () => void} */
function afterPause(work) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, 200);
  };
}
