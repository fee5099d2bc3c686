// The user's own network, as own.py of `bptt.explain` has put it into the page; null in the page of the lecture alone.
// Indices count from 0 in the data and from 1 in all text.

const [ZERO, INF, NAN] = [-32768, 32766, 32767]; // downsample.py says how cells are written

const node = globalThis.document?.getElementById("own");
export const own = node ? JSON.parse(node.textContent) : null;

// A number that JSON may have to write as a word.
export function read(value) {
  return { NaN: NaN, Inf: Infinity, "-Inf": -Infinity }[value] ?? value;
}

// The first step of block i of `blocks`, and of the one after it.
export function block(i, blocks, steps) {
  return [Math.floor((i * steps) / blocks), Math.floor(((i + 1) * steps) / blocks)];
}

// "7", or "7–12" where a block holds several; counted from `first`.
export function blockName(i, blocks, steps, first = 1) {
  const [from, to] = block(i, blocks, steps);
  return to - from === 1 ? `${from + first}` : `${from + first}–${to - 1 + first}`;
}

// log10 of a map's cells, Float64Array of its triangle: −∞ is 0, ∞ and NaN are themselves.
export function cells(text) {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float64Array.from({ length: bytes.length / 2 }, (_, i) => {
    const value = view.getInt16(2 * i, true);
    return value === NAN ? NaN : value === INF ? Infinity : value === ZERO ? -Infinity : value / 100;
  });
}

// Where cell (t, k) stands in the triangle: forward k ≤ t, reverse k ≥ t.
export function place(t, k, blocks, reverse) {
  return reverse ? t * blocks - (t * (t - 1)) / 2 + (k - t) : (t * (t + 1)) / 2 + k;
}
