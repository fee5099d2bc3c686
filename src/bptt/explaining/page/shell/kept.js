// What a scene computes from the state once for each state, since several of its parts ask for it.

/** @import { State } from "../types.d.ts" */

/** @type {<S extends object, Made>(make: (state: S) => Made) => (state: S) => Made} */
export function keptFor(make) {
  const made = new WeakMap();
  return (state) => {
    if (!made.has(state)) made.set(state, make(state));
    return made.get(state);
  };
}

/**
 * Like keptFor, but what was made is kept for as long as key(state), a text, stays as it is.
 * @type {<Made>(key: (state: State) => string, make: (state: State) => Made) => (state: State) => Made}
 */
export function keptWhile(key, make) {
  /** @type {string | null} */
  let last = null;
  /** @type {any} */
  let made;
  return (state) => {
    const now = key(state);
    if (now !== last) [last, made] = [now, make(state)];
    return made;
  };
}
