// A slider for a positive number, equal steps for equal ratios.
import { slider } from "./inputs.js";
/** @import { FieldsOf, Page } from "../types.d.ts" */

/**
 * A slider for a field whose number keeps three digits.
 * @type {(page: Page, options: { label: string | Element, field: FieldsOf<number>, min: number, max: number }) =>
 *   HTMLElement}
 */
export function logSlider(page, { label, field, min, max }) {
  return slider(page, {
    label,
    min: Math.log10(min),
    max: Math.log10(max),
    step: 0.005,
    read: (state) => Math.log10(state[field]),
    write: (power) => ({ [field]: Number((10 ** power).toPrecision(3)) }),
    say: (power) => String(Number((10 ** power).toPrecision(3))),
  });
}
