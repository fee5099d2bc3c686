// Numbers as text: three decimals, a true minus sign, powers of ten where three decimals would show nothing.

/** @type {Record<string, string>} */
const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

/**
 * A number with this many decimals, or in powers of ten where they would show nothing.
 * @type {(value: number, decimals?: number) => string}
 */
export function show(value, decimals = 3) {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (value !== 0 && (size < 0.5 * 10 ** -decimals || size >= 1e5)) return power(value);
  return withMinus((value === 0 ? 0 : value).toFixed(decimals));
}

/**
 * The number as it was typed, with a true minus sign.
 * @type {(value: number) => string}
 */
export function plain(value) {
  return withMinus(String(value));
}

/**
 * 10 to a whole power, whatever its size: decade(-400) is "10⁻⁴⁰⁰".
 * @type {(exponent: number) => string}
 */
export function decade(exponent) {
  if (exponent === 0) return "1";
  return exponent === 1 ? "10" : `10${raised(exponent)}`;
}

/** @type {(value: number) => string} */
function power(value) {
  const [digits, exponent] = value.toExponential(1).split("e");
  return `${withMinus(digits)}·10${raised(Number(exponent))}`;
}

/** @type {(exponent: number) => string} */
function raised(exponent) {
  return [...String(exponent)].map((sign) => RAISED[sign]).join("");
}

/** @type {(text: string) => string} */
function withMinus(text) {
  return text.replace("-", "−");
}

/**
 * The number 10^log, also where it is too small or too large for a number of its own.
 * @type {(log: number) => string}
 */
export function showPower(log) {
  if (Number.isNaN(log)) return "NaN";
  if (Math.abs(log) < 5) return show(10 ** log);
  if (!Number.isFinite(log)) return log > 0 ? "∞" : "0";
  const n = Math.floor(log);
  const digits = (10 ** (log - n)).toFixed(1);
  return digits === "10.0" ? `1.0·${decade(n + 1)}` : `${digits}·${decade(n)}`;
}

/**
 * The length of a bar as a share of the longest, in CSS.
 * @type {(size: number, largest: number) => string}
 */
export function percent(size, largest) {
  return `${(100 * size) / largest}%`;
}
