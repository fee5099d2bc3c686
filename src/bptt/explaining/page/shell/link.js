// The address: #scene?field=value&…, with those fields alone that differ from their initial value.

export function encode(scene, state, fields) {
  const parts = Object.entries(fields)
    .map(([name, field]) => [name, field.encode(state[name]), field.encode(field.initial)])
    .filter(([, now, initial]) => now !== initial)
    .map(([name, now]) => `${name}=${now}`);
  return `#${scene}${parts.length ? "?" : ""}${parts.join("&")}`;
}

// {scene, state, broken}: the default state, with `broken` true, if anything in the address is not understood.
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

export function initialState(fields) {
  return Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, field.initial]));
}

// Messengers and mail programs escape what they send.
function unescaped(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
