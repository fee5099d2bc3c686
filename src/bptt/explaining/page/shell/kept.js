// What a scene computes from the state, once for each state: several parts of the scene ask for it.
export function keptFor(make) {
  const made = new WeakMap();
  return (state) => {
    if (!made.has(state)) made.set(state, make(state));
    return made.get(state);
  };
}
