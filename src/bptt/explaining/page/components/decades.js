// A colour for a size on a log scale, and its legend by the decade. The colours grow evenly lighter from small to
// large, and hold for all kinds of colour blindness: cividis (Nuñez, Anderton, Renslow 2018), by ten of its points.
import { el } from "./dom.js";
import { decade } from "./numbers.js";

const POINTS = [
  [0, 34, 78],
  [18, 53, 112],
  [59, 73, 108],
  [87, 93, 109],
  [112, 113, 115],
  [138, 134, 120],
  [165, 156, 116],
  [195, 179, 105],
  [225, 204, 85],
  [254, 232, 56],
];
const SHADES = Array.from({ length: 256 }, (_, i) => mixed((i / 255) * (POINTS.length - 1)));

/** @type {(at: number) => string} */
function mixed(at) {
  const i = Math.min(Math.floor(at), POINTS.length - 2);
  const parts = POINTS[i].map((from, channel) => Math.round(from + (at - i) * (POINTS[i + 1][channel] - from)));
  return `rgb(${parts.join(",")})`;
}

/**
 * The colour of a share of the scale: 0 is its lower end, 1 its upper end, and what lies beyond an end has that end's
 * colour.
 * @type {(share: number) => string}
 */
export function colourOf(share) {
  return SHADES[Math.round(255 * Math.min(1, Math.max(0, share)))];
}

/**
 * Black or white, whichever can be read on this colour (WCAG's relative luminance).
 * @type {(colour: string) => string}
 */
export function inkOn(colour) {
  const [r, g, b] = (colour.match(/\d+/g) ?? [])
    .map((part) => Number(part) / 255)
    .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}

/**
 * The colours with their ends. low and top: log10 of the ends; below: whether smaller values are shown in the
 * lowest colour; notes: more signs, {class: text}.
 * @type {(shown: { low: number, top: number, below: boolean, notes?: Record<string, string> }) => HTMLElement}
 */
export function legend({ low, top, below, notes = {} }) {
  const stops = [0, 0.25, 0.5, 0.75, 1].map((share) => colourOf(share));
  const bar = el("span", { class: "bar-of-colours" });
  bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
  const ends = [`${below ? "≤ " : ""}${decade(low)}`, decade(top)];
  return el(
    "div",
    { class: "legend" },
    el("span", {}, ends[0]),
    bar,
    el("span", {}, ends[1]),
    Object.entries(notes).map(([name, text]) =>
      el("span", { class: "note" }, el("span", { class: `swatch ${name}` }), text),
    ),
  );
}
