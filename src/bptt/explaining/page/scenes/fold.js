// Scene 1, eq. (2) to (4): the compact network and its copies along time are one network with one set of weights.
import { controls, lead } from "../components/blocks.js";
import { el, pointer } from "../components/dom.js";
import { lengthSlider } from "../components/editors.js";
import { formula, maths } from "../components/formula.js";
import { button, matrixEditor, slider } from "../components/inputs.js";
import { networkDrawing } from "../components/network.js";
import { predictFirst } from "../components/predict.js";
import { choice, namesOf, number } from "../shell/fields.js";
/** @import { Page, Pointed, Scene } from "../types.d.ts" */

const MATRICES = { hx: "input to hidden", hh: "previous hidden to hidden", yh: "hidden to output" };
const KINDS = namesOf(MATRICES);
/** @typedef {keyof typeof MATRICES} Kind */

export const fields = {
  fold_open: number(0, { min: 0, max: 1 }),
  fold_lit: choice("", ["", ...KINDS]), // the matrix whose copies stay lit
};

/** @type {Scene} */
export const scene = { id: "fold", order: 1, short: "Fold", title: "Fold ⇄ unfold", fields, mount };

/** @type {Scene["mount"]} */
function mount(root, page) {
  const pointed = pointer(page, /** @type {Kind | ""} */ (""));
  page.steps((state, by) => ({ fold_open: by > 0 ? 1 : 0 }));
  root.append(
    lead(
      "Backpropagation through time is ordinary backpropagation, applied to a network that also has a time " +
        "dimension. The network is drawn twice: compact, with one recurrent edge, and unfolded, with one copy per time step. The copies " +
        "share their weights: point at a matrix to see all of them.",
    ),
    drawing(page, pointed),
    controls(foldButton(page), openSlider(page), lengthSlider(page)),
    counted(page, pointed),
    whatIsNew(),
    el(
      "div",
      { class: "matrices" },
      KINDS.map((kind) => matrix(page, kind, pointed)),
    ),
    question(page),
  );
}

/** @type {(page: Page, pointed: Pointed<Kind | "">) => HTMLElement} */
function drawing(page, pointed) {
  return networkDrawing(
    page,
    ({ x, fold_open, fold_lit }) => {
      const kind = pointed.now() || fold_lit;
      const shown =
        fold_open === 0 ? "compact, with one recurrent edge" : `unfolded into ${x.length} copies along time`;
      return {
        T: x.length,
        open: fold_open,
        lit: new Set(kind ? [kind] : []),
        label: `The network, ${shown}${kind ? `; every copy of W ${kind} is lit` : ""}`,
      };
    },
    (key, t, what) => {
      const kind = KINDS.find((one) => one === key.replace(/\d+$/, ""));
      if (!kind) return;
      if (what === "click") pin(page, kind);
      else pointed.at(what === "enter" ? kind : "");
    },
  );
}

/**
 * Lets the copies of this matrix stay lit, or no longer.
 * @type {(page: Page, kind: Kind) => void}
 */
function pin(page, kind) {
  page.set(({ fold_lit }) => ({ fold_lit: fold_lit === kind ? "" : kind }));
}

/** @type {() => HTMLElement} */
function whatIsNew() {
  const [hx, yh, hh] = [maths("\\hx{W_{hx}}"), maths("\\yh{W_{yh}}"), maths("\\hh{W_{hh}}")];
  return el("p", {}, hx, " and ", yh, " are those of a multilayer perceptron; ", hh, " is what is new.");
}

/** @type {(page: Page, kind: Kind, pointed: Pointed<Kind | "">) => HTMLElement} */
function matrix(page, kind, pointed) {
  const name = button(formula(`\\${kind}{W_{${kind}}}`), () => pin(page, kind), {
    class: `pin ${kind}`,
    "aria-label": `Light every copy of W ${kind}`,
    ...pointed.on(kind),
  });
  page.follow(({ fold_lit }) => name.setAttribute("aria-pressed", String(fold_lit === kind)));
  const caption = el("span", {}, name, el("small", {}, MATRICES[kind]));
  return matrixEditor(page, { field: `W_${kind}`, caption, colour: kind });
}

/**
 * A sentence that says how many copies there are.
 * @type {(page: Page, pointed: Pointed<Kind | "">) => HTMLElement}
 */
function counted(page, pointed) {
  const node = el("p", { class: "said", role: "status" });
  let now = "";
  page.follow(({ x, fold_lit }) => {
    const kind = pointed.now() || fold_lit;
    if (now === `${kind}${x.length}`) return;
    now = `${kind}${x.length}`;
    const copies = `${x.length} ${x.length === 1 ? "copy" : "copies"}`;
    if (kind)
      node.replaceChildren(maths(`\\${kind}{W_{${kind}}}`), `, ${MATRICES[kind]}: ${copies} in time, one matrix.`);
    else node.replaceChildren(`${copies} in time, one network.`);
  });
  return node;
}

/** @type {(page: Page) => HTMLElement} */
function openSlider(page) {
  return slider(page, {
    label: "Unfolded",
    min: 0,
    max: 1,
    step: 0.01,
    read: (state) => state.fold_open,
    write: (fold_open) => ({ fold_open }),
    say: (value) => `${Math.round(100 * value)} %`,
  });
}

/** @type {(page: Page) => HTMLElement} */
function foldButton(page) {
  let running = 0;
  const node = button(
    "Unfold",
    () => {
      const [from, to] = [page.get().fold_open, page.get().fold_open < 0.5 ? 1 : 0];
      cancelAnimationFrame(running);
      if (matchMedia("(prefers-reduced-motion: reduce)").matches) return page.set({ fold_open: to });
      const start = performance.now();
      /** @type {(now: number) => void} */
      const step = (now) => {
        const share = Math.min(1, Math.max(0, (now - start) / 900));
        page.set({ fold_open: share === 1 ? to : from + (to - from) * share * share * (3 - 2 * share) });
        if (share < 1) running = requestAnimationFrame(step);
      };
      running = requestAnimationFrame(step);
    },
    { class: "primary" },
  );
  page.follow(({ fold_open }) => (node.textContent = fold_open < 0.5 ? "Unfold" : "Fold"));
  return node;
}

/** @type {(page: Page) => HTMLElement} */
function question(page) {
  return predictFirst(page, {
    question: "The sequence becomes twice as long. How many weights has the network then?",
    options: ["twice as many", "as many as before", "one more matrix for each step"],
    right: 1,
    why: el(
      "p",
      {},
      "Every time step uses the same three matrices. A longer sequence only adds copies, and each copy adds " +
        "its own share to the gradient of the same weights.",
    ),
  });
}
