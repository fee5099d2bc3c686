// Kinds of state fields, `Field` in types.d.ts.

/** @import { Field, Matrix, Vector } from "../types.d.ts" */

/**
 * A finite decimal number, as people write it; undefined for anything else ("", "0x10", "1,5", "Infinity").
 * @type {(text: string) => number | undefined}
 */
export function parseNumber(text) {
  const plain = text.trim().replace("−", "-");
  if (!/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(plain)) return undefined;
  const value = Number(plain);
  return Number.isFinite(value) ? value : undefined;
}

/** @type {(initial: number, limits?: { min?: number, max?: number }) => Field<number>} */
export function number(initial, { min = -Infinity, max = Infinity } = {}) {
  return { initial, encode: String, decode: (text) => inRange(parseNumber(text), min, max) };
}

/** @type {(initial: number, limits: { min: number, max: number }) => Field<number>} */
export function integer(initial, { min, max }) {
  /** @type {(value: number | undefined) => number | undefined} */
  const whole = (value) => (Number.isInteger(value) ? value : undefined);
  return { initial, encode: String, decode: (text) => whole(inRange(parseNumber(text), min, max)) };
}

/**
 * The names of an object's properties.
 * @type {<T extends object>(object: T) => (keyof T & string)[]}
 */
export function namesOf(object) {
  return /** @type {any} */ (Object.keys(object));
}

/** @type {<T extends string>(initial: NoInfer<T>, options: T[]) => Field<T>} */
export function choice(initial, options) {
  return { initial, encode: String, decode: (text) => options.find((option) => option === text) };
}

/** @type {(initial: boolean) => Field<boolean>} */
export function flag(initial) {
  return {
    initial,
    encode: (value) => (value ? "1" : "0"),
    decode: (text) => (text === "1" ? true : text === "0" ? false : undefined),
  };
}

/** @type {(initial: Vector) => Field<Vector>} */
export function vector(initial) {
  return { initial, encode: (values) => values.join(","), decode: numbers };
}

/** @type {(initial: Matrix) => Field<Matrix>} */
export function matrix(initial) {
  return {
    initial,
    encode: (rows) => rows.map((row) => row.join(",")).join(";"),
    decode(text) {
      const rows = text.split(";").map(numbers);
      return allThere(rows) && rows.every((row) => row.length === rows[0].length) ? rows : undefined;
    },
  };
}

/**
 * A matrix whose shape stays that of its initial value.
 * @type {(initial: Matrix) => Field<Matrix>}
 */
export function fixedMatrix(initial) {
  const { decode, ...field } = matrix(initial);
  return {
    ...field,
    decode(text) {
      const rows = decode(text);
      return rows?.length === initial.length && rows[0].length === initial[0].length ? rows : undefined;
    },
  };
}

/** @type {(text: string) => Vector | undefined} */
function numbers(text) {
  const values = text.split(",").map(parseNumber);
  return allThere(values) ? values : undefined;
}

/** @type {<T>(values: (T | undefined)[]) => values is T[]} */
function allThere(values) {
  return !values.includes(undefined);
}

/** @type {(value: number | undefined, min: number, max: number) => number | undefined} */
function inRange(value, min, max) {
  return value !== undefined && value >= min && value <= max ? value : undefined;
}
