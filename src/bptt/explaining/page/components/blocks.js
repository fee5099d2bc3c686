// The blocks that scenes are made of.
import { el } from "./dom.js";
import { button } from "./inputs.js";
/** @import { Children, Page, Patch } from "../types.d.ts" */

/**
 * The first sentences of a scene.
 * @type {(...content: Children) => HTMLElement}
 */
export const lead = (...content) => el("p", { class: "lead" }, ...content);

/**
 * A heading with formulas below it.
 * @type {(title: string, ...content: Children) => HTMLElement}
 */
export const equation = (title, ...content) => el("div", { class: "equation" }, el("h3", {}, title), ...content);

/**
 * Sliders, choices and buttons side by side.
 * @type {(...content: Children) => HTMLElement}
 */
export const controls = (...content) => el("div", { class: "controls" }, ...content);

/**
 * Buttons, each of which sets some fields of the state.
 * @type {(page: Page, patches: Record<string, Patch>) => HTMLElement}
 */
export function presets(page, patches) {
  const buttons = Object.entries(patches).map(([name, patch]) => button(name, () => page.set(patch)));
  return el("div", { class: "presets" }, buttons);
}

/**
 * The section with the editors of the scene's matrices.
 * @type {(...editors: Children) => Node[]}
 */
export const numbersToChange = (...editors) => [
  el("h3", {}, "The numbers to change"),
  el("div", { class: "matrices" }, ...editors),
];
