// What a scene computes from the state, once for each state: several parts of the scene ask for it.
export function keptFor(make) {
  const made = new WeakMap();
  return (state) => {
    if (!made.has(state)) made.set(state, make(state));
    return made.get(state);
  };
}

// The same, kept while key(state), a text, stays as it is.
export function keptWhile(key, make) {
  let [last, made] = [null, null];
  return (state) => {
    const now = key(state);
    if (now !== last) [last, made] = [now, make(state)];
    return made;
  };
}
