// Lecture mode: the arrow keys move between scenes and steps, as long as nothing else has a use for them.

const TYPING = "input:not([type=range], [type=radio], [type=checkbox]), select, textarea, [contenteditable]";
const OWN_ARROWS = "input, select, textarea, [contenteditable], [role=slider], [role=grid], [role=listbox]";

export const LECTURE_NOTE = "Lecture mode: ← → move between scenes, ↑ ↓ between steps, Esc leaves.";

// on() → lecture mode is on; scene(±1), step(±1) → whether there was such a move; leave().
export function lectureKeys({ on, scene, step, leave }) {
  document.addEventListener("keydown", (event) => {
    if (!on() || event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.key === "Escape" && !event.target.closest(TYPING)) leave();
    const [move, by] = MOVES[event.key] ?? [];
    if (!move || event.target.closest(OWN_ARROWS) || scrolls(event.target)) return;
    if ({ scene, step }[move](by)) event.preventDefault();
  });
}

// A presenter's remote control sends PageUp and PageDown.
const MOVES = {
  ArrowRight: ["scene", 1],
  PageDown: ["scene", 1],
  ArrowLeft: ["scene", -1],
  PageUp: ["scene", -1],
  ArrowDown: ["step", 1],
  ArrowUp: ["step", -1],
};

// A long formula or program that has the focus scrolls on these keys.
function scrolls(node) {
  const box = node.closest("pre, .formula");
  return box !== null && (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight);
}
