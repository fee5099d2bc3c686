// The user's own network, as own.py of `bptt.explain` has put it into the page; null in the page of the lecture alone.
// Indices count from 0 in the data and from 1 in all text.

/** @import { DecodedMap, JsonNumber, Own, OwnMap, Vector } from "../types.d.ts" */

const [ZERO, INF, NAN] = [-32768, 32766, 32767]; // downsample.py says how cells are written

const node = globalThis.document?.getElementById("own");
/** @type {Own | null} */
export const own = node ? JSON.parse(node.textContent) : null;

/**
 * The number that JSON may have had to write as a word.
 * @type {(value: JsonNumber) => number}
 */
export function read(value) {
  return typeof value === "number" ? value : { NaN: NaN, Inf: Infinity, "-Inf": -Infinity }[value];
}

/**
 * The first step of block i of `blocks`, and that of the next block.
 * @type {(i: number, blocks: number, steps: number) => [number, number]}
 */
export function block(i, blocks, steps) {
  return [Math.floor((i * steps) / blocks), Math.floor(((i + 1) * steps) / blocks)];
}

/**
 * "7", or "7–12" where a block holds several; counted from `first`.
 * @type {(i: number, blocks: number, steps: number, first?: number) => string}
 */
export function blockName(i, blocks, steps, first = 1) {
  const [from, to] = block(i, blocks, steps);
  return to - from === 1 ? `${from + first}` : `${from + first}–${to - 1 + first}`;
}

/**
 * log₁₀ of the cells of a map's triangle; a cell that is 0 gives −∞.
 * @type {(text: string) => Float64Array}
 */
export function cells(text) {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float64Array.from({ length: bytes.length / 2 }, (_, i) => {
    const value = view.getInt16(2 * i, true);
    return value === NAN ? NaN : value === INF ? Infinity : value === ZERO ? -Infinity : value / 100;
  });
}

/**
 * The index of cell (t, k) in the triangle: k ≤ t in a forward direction, k ≥ t in a reverse one.
 * @type {(t: number, k: number, blocks: number, reverse: boolean) => number}
 */
export function place(t, k, blocks, reverse) {
  return reverse ? t * blocks - (t * (t - 1)) / 2 + (k - t) : (t * (t + 1)) / 2 + k;
}

/**
 * The map with its cells as numbers. At most `deepest` decades below the largest cell have colours of their own.
 * @type {(map: OwnMap, deepest: number) => DecodedMap}
 */
export function decodedMap(map, deepest) {
  const values = cells(map.cells);
  const has = { zero: values.includes(-Infinity), NaN: values.some(Number.isNaN), infinite: values.includes(Infinity) };
  const through = Object.fromEntries(Object.entries(map.through).map(([name, sums]) => [name, sums.map(read)]));
  const { horizon } = map;
  return {
    ...colourEnds(values, deepest),
    values,
    has,
    lags: map.lags.map(read),
    through,
    shares: sharesOf(through),
    horizon,
  };
}

/** @type {(values: Float64Array, deepest: number) => { low: number, top: number, below: boolean }} */
function colourEnds(values, deepest) {
  const finite = [...values].filter(Number.isFinite);
  if (finite.length === 0) return { low: -1, top: 0, below: false };
  const [first, last] = [least(finite), most(finite)];
  const low = Math.max(Math.floor(first), Math.ceil(last) - deepest);
  return { low, top: Math.max(Math.ceil(last), low + 1), below: first < low };
}

/** @type {(through: Record<string, Vector>) => Record<string, (number | null)[]>} */
function sharesOf(through) {
  const parts = Object.values(through);
  /** @type {(i: number) => number} */
  const total = (i) => parts.reduce((sum, part) => sum + part[i], 0);
  /** @type {(part: Vector) => (number | null)[]} */
  const shares = (part) => part.map((value, i) => (total(i) > 0 ? (100 * value) / total(i) : null));
  return Object.fromEntries(Object.entries(through).map(([name, part]) => [name, shares(part)]));
}

/**
 * The smallest of the values that are finite, of which there may be many thousands; ∞ if there are none.
 * @type {(values: Vector) => number}
 */
export function least(values) {
  return values.filter(Number.isFinite).reduce((a, b) => Math.min(a, b), Infinity);
}

/**
 * The largest of the values that are finite; −∞ if there are none.
 * @type {(values: Vector) => number}
 */
export function most(values) {
  return values.filter(Number.isFinite).reduce((a, b) => Math.max(a, b), -Infinity);
}
