// Kinds of state fields. A field is {initial, encode(value) → text, decode(text) → value or undefined if it is not valid}.
// The text stands in the address, so it holds no & = # ? or %.

// A finite decimal number, as people write it; undefined for anything else ("", "0x10", "1,5", "Infinity").
export function parseNumber(text) {
  const plain = text.trim().replace("−", "-");
  if (!/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(plain)) return undefined;
  const value = Number(plain);
  return Number.isFinite(value) ? value : undefined;
}

export function number(initial, { min = -Infinity, max = Infinity } = {}) {
  return { initial, encode: String, decode: (text) => inRange(parseNumber(text), min, max) };
}

export function integer(initial, { min, max }) {
  const whole = (value) => (Number.isInteger(value) ? value : undefined);
  return { initial, encode: String, decode: (text) => whole(inRange(parseNumber(text), min, max)) };
}

export function choice(initial, options) {
  return { initial, encode: String, decode: (text) => (options.includes(text) ? text : undefined) };
}

export function flag(initial) {
  return { initial, encode: (value) => (value ? "1" : "0"), decode: (text) => ({ 0: false, 1: true })[text] };
}

export function vector(initial) {
  return { initial, encode: (values) => values.join(","), decode: numbers };
}

export function matrix(initial) {
  return {
    initial,
    encode: (rows) => rows.map((row) => row.join(",")).join(";"),
    decode(text) {
      const rows = text.split(";").map(numbers);
      return rows.includes(undefined) || rows.some((row) => row.length !== rows[0].length) ? undefined : rows;
    },
  };
}

// A matrix whose shape stays that of its initial value.
export function fixedMatrix(initial) {
  const { decode, ...field } = matrix(initial);
  const fits = (rows) => rows?.length === initial.length && rows[0].length === initial[0].length;
  return { ...field, decode: (text) => [decode(text)].find(fits) };
}

function numbers(text) {
  const values = text.split(",").map(parseNumber);
  return values.includes(undefined) ? undefined : values;
}

function inRange(value, min, max) {
  return value >= min && value <= max ? value : undefined;
}
