// The whole state of the page: one plain object that is replaced, never changed, so that results can be kept by
// identity.

/** @import { State, Store } from "../types.d.ts" */

/** @type {(initial: State) => Store} */
export function createStore(initial) {
  let state = initial;
  /** @type {Set<(state: State) => void>} */
  const listeners = new Set();
  return {
    get: () => state,
    // set({field: value, …}) or set((state) => ({…})).
    set(patch) {
      state = { ...state, ...(typeof patch === "function" ? patch(state) : patch) };
      for (const listener of listeners) listener(state);
    },
    subscribe: (listener) => listeners.add(listener),
  };
}
