// Scene 1, lecture lines 2 to 4: the compact network and its copies along time are one network with one set of weights.
import { el } from "../components/dom.js";
import { lengthSlider } from "../components/editors.js";
import { formula, maths } from "../components/formula.js";
import { button, matrixEditor, slider } from "../components/inputs.js";
import { networkDrawing } from "../components/network.js";
import { predictFirst } from "../components/predict.js";
import { choice, number } from "../shell/fields.js";

const MATRICES = { hx: "input to hidden", hh: "previous hidden to hidden", yh: "hidden to output" };

export const scene = {
  id: "fold",
  order: 1,
  short: "Fold",
  title: "Fold ⇄ unfold",
  fields: {
    fold_open: number(0, { min: 0, max: 1 }),
    fold_lit: choice("", ["", ...Object.keys(MATRICES)]), // the matrix whose copies stay lit
  },
  mount,
};

function mount(root, page) {
  let pointed = ""; // what the mouse is on, for as long as it is
  const point = (kind) => {
    pointed = kind;
    page.refresh();
  };
  const pin = (kind) => page.set(({ fold_lit }) => ({ fold_lit: fold_lit === kind ? "" : kind }));
  const drawing = networkDrawing(
    page,
    ({ x, fold_open, fold_lit }) => {
      const kind = pointed || fold_lit;
      const shown = fold_open === 0 ? "compact, with one recurrent edge" : `unfolded into ${x.length} copies along time`;
      return {
        T: x.length,
        open: fold_open,
        lit: new Set(kind ? [kind] : []),
        label: `The network, ${shown}${kind ? `; every copy of W ${kind} is lit` : ""}`,
      };
    },
    (key, t, what) => {
      const kind = key.replace(/\d+$/, "");
      if (!(kind in MATRICES)) return;
      if (what === "click") pin(kind);
      else point(what === "enter" ? kind : "");
    },
  );
  page.steps((state, by) => ({ fold_open: by > 0 ? 1 : 0 }));
  root.append(
    el(
      "p",
      { class: "lead" },
      "Backpropagation through time is ordinary backpropagation, applied to a network that also has a time " +
        "dimension. The network is drawn twice: compact, with one recurrent edge, and unfolded, with one copy per time step. The copies " +
        "share their weights: point at a matrix to see all of them.",
    ),
    drawing,
    el("div", { class: "controls" }, foldButton(page), openSlider(page), lengthSlider(page)),
    counted(page, () => pointed),
    el(
      "p",
      {},
      maths("\\hx{W_{hx}}"),
      " and ",
      maths("\\yh{W_{yh}}"),
      " are those of a multilayer perceptron; ",
      maths("\\hh{W_{hh}}"),
      " is what is new.",
    ),
    el(
      "div",
      { class: "matrices" },
      Object.keys(MATRICES).map((kind) => matrix(page, kind, pin, point)),
    ),
    predictFirst(page, {
      question: "The sequence becomes twice as long. How many weights has the network then?",
      options: ["twice as many", "as many as before", "one more matrix for each step"],
      right: 1,
      why: el(
        "p",
        {},
        "Every time step uses the same three matrices. A longer sequence only adds copies, and each copy adds " +
          "its own share to the gradient of the same weights.",
      ),
    }),
  );
}

function matrix(page, kind, pin, point) {
  const name = button(formula(`\\${kind}{W_{${kind}}}`), () => pin(kind), {
    class: `pin ${kind}`,
    "aria-label": `Light every copy of W ${kind}`,
    onpointerenter: () => point(kind),
    onpointerleave: () => point(""),
    onfocus: () => point(kind),
    onblur: () => point(""),
  });
  page.follow(({ fold_lit }) => name.setAttribute("aria-pressed", String(fold_lit === kind)));
  const caption = el("span", {}, name, el("small", {}, MATRICES[kind]));
  return matrixEditor(page, { field: `W_${kind}`, caption, colour: kind });
}

// How many copies there are, in words.
function counted(page, pointed) {
  const node = el("p", { class: "said", role: "status" });
  let now = "";
  page.follow(({ x, fold_lit }) => {
    const kind = pointed() || fold_lit;
    if (now === `${kind}${x.length}`) return;
    now = `${kind}${x.length}`;
    const copies = `${x.length} ${x.length === 1 ? "copy" : "copies"}`;
    if (kind) node.replaceChildren(maths(`\\${kind}{W_{${kind}}}`), `, ${MATRICES[kind]}: ${copies} in time, one matrix.`);
    else node.replaceChildren(`${copies} in time, one network.`);
  });
  return node;
}

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

function foldButton(page) {
  let running = 0;
  const node = button(
    "Unfold",
    () => {
      const [from, to] = [page.get().fold_open, page.get().fold_open < 0.5 ? 1 : 0];
      cancelAnimationFrame(running);
      if (matchMedia("(prefers-reduced-motion: reduce)").matches) return page.set({ fold_open: to });
      const start = performance.now();
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
