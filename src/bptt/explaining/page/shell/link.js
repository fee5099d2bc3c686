// The address: #scene?field=value&…, with those fields alone that differ from their initial value.

/** @import { Fields } from "../types.d.ts" */

/** @type {(scene: string, state: Record<string, any>, fields: Fields) => string} */
export function encode(scene, state, fields) {
  const parts = Object.entries(fields)
    .map(([name, field]) => [name, field.encode(state[name]), field.encode(field.initial)])
    .filter(([, now, initial]) => now !== initial)
    .map(([name, now]) => `${name}=${now}`);
  return `#${scene}${parts.length ? "?" : ""}${parts.join("&")}`;
}

/**
 * The scene and the state that an address stands for. If anything in it is not understood, `broken` is true, and
 * the state is the initial one.
 * @type {(hash: string, fields: Fields, consistent?: (state: any) => boolean) =>
 *   { scene: string, state: Record<string, any>, broken: boolean }}
 */
export function decode(hash, fields, consistent = () => true) {
  const [scene, query = ""] = unescaped(hash).replace(/^#/, "").split("?");
  const initial = initialState(fields);
  const state = { ...initial };
  for (const part of query ? query.split("&") : []) {
    const [name, text] = part.split("=");
    const value = Object.hasOwn(fields, name) && text !== undefined ? fields[name].decode(text) : undefined;
    if (value === undefined) return { scene, state: initial, broken: true };
    state[name] = value;
  }
  return consistent(state) ? { scene, state, broken: false } : { scene, state: initial, broken: true };
}

/** @type {(fields: Fields) => Record<string, any>} */
export function initialState(fields) {
  return Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, field.initial]));
}

/**
 * The address as it was written: messengers and mail programs escape what they send.
 * @type {(text: string) => string}
 */
function unescaped(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
