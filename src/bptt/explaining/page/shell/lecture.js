// Lecture mode: the arrow keys move between scenes and steps, as long as nothing else has a use for them.

const TYPING = "input:not([type=range], [type=radio], [type=checkbox]), select, textarea, [contenteditable]";
const OWN_ARROWS = "input, select, textarea, [contenteditable], [role=slider], [role=grid], [role=listbox]";

export const LECTURE_NOTE = "Lecture mode: ← → move between scenes, ↑ ↓ between steps, Esc leaves.";

// A presenter's remote control sends PageUp and PageDown.
/** @type {Record<string, ["scene" | "step", number]>} */
const MOVES = {
  ArrowRight: ["scene", 1],
  PageDown: ["scene", 1],
  ArrowLeft: ["scene", -1],
  PageUp: ["scene", -1],
  ArrowDown: ["step", 1],
  ArrowUp: ["step", -1],
};

/**
 * Listens to the keys. on() says whether lecture mode is on; scene(±1) and step(±1) move, and say whether there was
 * such a move; leave() ends lecture mode.
 * @type {(doing: Record<"scene" | "step", (by: number) => boolean> & { on: () => boolean, leave: () => void }) => void}
 */
export function lectureKeys({ on, leave, ...moves }) {
  document.addEventListener("keydown", (event) => {
    if (!on() || event.defaultPrevented || modified(event)) return;
    const target = /** @type {Element} */ (event.target);
    if (event.key === "Escape" && !target.closest(TYPING)) leave();
    if (!Object.hasOwn(MOVES, event.key) || usesArrows(target)) return;
    const [move, by] = MOVES[event.key];
    if (moves[move](by)) event.preventDefault();
  });
}

/** @type {(event: KeyboardEvent) => boolean} */
function modified(event) {
  return event.altKey || event.ctrlKey || event.metaKey || event.shiftKey;
}

// A long formula or program that has the focus scrolls on the arrow keys.
/** @type {(node: Element) => boolean} */
function usesArrows(node) {
  if (node.closest(OWN_ARROWS)) return true;
  const box = node.closest("pre, .formula");
  return box !== null && (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight);
}
