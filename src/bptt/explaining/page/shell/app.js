// The page: header, one section a scene, the address, the keyboard. Scenes know nothing of it but the `page` they get.
import { codeBlock } from "../components/code.js";
import { el } from "../components/dom.js";
import { button } from "../components/inputs.js";
import { flag } from "./fields.js";
import { decode, encode, initialState } from "./link.js";
import { LECTURE_NOTE, lectureKeys } from "./lecture.js";
import { FIELDS, consistent, results } from "./model.js";
import { predictions } from "./predictions.js";
import { createStore } from "./store.js";

export function start(root, all) {
  const scenes = all.filter((scene) => scene.exists?.() ?? true).sort((a, b) => a.order - b.order);
  const first = scenes.find((scene) => scene.opens) ?? scenes[0];
  const fields = allFields(scenes);
  const store = createStore(initialState(fields));
  const views = scenes.map((scene) => view(scene, store, { questions, address }));
  const header = head(scenes, startOver, () => store.set(({ lecture }) => ({ lecture: !lecture })));
  const notice = el("p", { class: "notice", role: "status", hidden: true });
  root.append(
    header.node,
    notice,
    el(
      "main",
      {},
      views.map((one) => one.section),
    ),
  );
  let current = null;

  function open(hash, focus) {
    const found = decode(hash, fields, consistent);
    const unknown = found.scene !== "" && !scenes.some((scene) => scene.id === found.scene);
    notice.hidden = !(found.broken || unknown);
    notice.textContent = found.broken
      ? "The numbers in this address could not be read: the page starts with its own."
      : "There is no such scene: this is where the page starts.";
    show(unknown || found.scene === "" ? first.id : found.scene, focus);
    store.set(found.state);
  }

  function show(id, focus) {
    const changed = current?.scene.id !== id;
    current = views.find((one) => one.scene.id === id);
    for (const one of views) one.section.hidden = one !== current;
    header.show(id);
    document.title = `${current.scene.title} · Backpropagation through time`;
    if (changed && focus) {
      window.scrollTo(0, 0);
      current.heading.focus({ preventScroll: true });
    }
    current.mount();
  }

  // To the scene `by` places further, if there is one.
  function move(by) {
    const next = scenes[scenes.indexOf(current.scene) + by];
    if (!next) return true;
    history.pushState(null, "", address(next.id)); // unlike location.hash it acts at once: keys may come fast
    open(location.hash, true);
    return true;
  }

  function startOver() {
    notice.hidden = true;
    store.set(initialState(fields));
  }

  // The address of a scene with the state as it is.
  function address(id) {
    return encode(id, store.get(), fields);
  }

  // What all scenes ask, [{scene, question, options}]; a scene asks when its content is made.
  function questions() {
    for (const one of views) one.mount();
    return views.flatMap((one) => one.asked.map((question) => ({ scene: one.scene, ...question })));
  }

  const repaint = oncePerFrame(() => {
    const state = store.get();
    document.documentElement.classList.toggle("lecture", state.lecture);
    header.update(state, address);
    views.forEach((one, i) => one.link(scenes[i - 1], scenes[i + 1]));
    current.update();
    remember();
  });

  const remember = afterPause(() => {
    const now = address(current.scene.id);
    if (location.hash !== now) history.replaceState(null, "", now);
  });

  store.subscribe(repaint);
  // Not location.hash: `remember` may have written the old address over the new one before the event came.
  window.addEventListener("hashchange", (event) => open(new URL(event.newURL).hash, true));
  lectureKeys({
    on: () => store.get().lecture,
    scene: move,
    step: (by) => current.step(by),
    leave: () => store.set({ lecture: false }),
  });
  open(location.hash, false);
  return { store, results: () => results(store.get()), scenes };
}

function allFields(scenes) {
  const fields = { ...FIELDS, lecture: flag(false), predictions };
  for (const scene of scenes) {
    for (const [name, field] of Object.entries(scene.fields ?? {})) {
      if (Object.hasOwn(fields, name)) throw new Error(`scene ${scene.id}: there is a field ${name} already`);
      fields[name] = field;
    }
  }
  return fields;
}

// A scene's section; its content is made when it is first shown, and follows the state while it is.
function view(scene, store, { questions, address }) {
  const followers = [];
  const asked = [];
  let steps = null;
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
  let mounted = false;

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

  // One step further in the scene, in lecture mode; whether it has steps.
  function step(by) {
    if (steps) store.set((state) => steps(state, by));
    return steps !== null;
  }

  function link(previous, next) {
    for (const [node, other, text] of [
      [before, previous, `← ${previous?.title}`],
      [after, next, `${next?.title} →`],
    ]) {
      node.hidden = !other;
      if (other) node.setAttribute("href", address(other.id));
      if (node.textContent !== text) node.textContent = text;
    }
  }

  return { scene, section, heading, asked, mount, update, link, step };
}

function head(scenes, onReset, onLecture) {
  const links = scenes.map((scene, i) =>
    el(
      "a",
      { href: `#${scene.id}`, "aria-label": `${i + 1} ${scene.title}` },
      el("b", {}, i + 1),
      el("span", {}, scene.short),
    ),
  );
  const lecture = button("Lecture mode", onLecture, {
    "aria-pressed": "false",
    title: "Larger; the arrow keys move between scenes and steps",
  });
  const note = el("p", { class: "lecture-note", role: "status" });
  const node = el(
    "header",
    {},
    el("h1", {}, "Backpropagation through time"),
    el("div", { class: "tools" }, lecture, button("Start over", onReset)),
    el(
      "nav",
      { "aria-label": "Scenes" },
      el(
        "ol",
        {},
        links.map((link) => el("li", {}, link)),
      ),
    ),
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
      if (note.textContent !== (state.lecture ? LECTURE_NOTE : "")) note.textContent = state.lecture ? LECTURE_NOTE : "";
      scenes.forEach((scene, i) => links[i].setAttribute("href", address(scene.id)));
    },
  };
}

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
function afterPause(work) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, 200);
  };
}
