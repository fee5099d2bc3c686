// Numbers as text: three decimals, a true minus sign, powers of ten where three decimals would show nothing.

const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

export function show(value, decimals = 3) {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (value !== 0 && (size < 0.5 * 10 ** -decimals || size >= 1e5)) return power(value);
  return withMinus((value === 0 ? 0 : value).toFixed(decimals));
}

// The number as it was typed, with a true minus sign.
export function plain(value) {
  return withMinus(String(value));
}

// 10 to a whole power, whatever its size: decade(-400) is "10⁻⁴⁰⁰".
export function decade(exponent) {
  return { 0: "1", 1: "10" }[exponent] ?? `10${raised(exponent)}`;
}

function power(value) {
  const [digits, exponent] = value.toExponential(1).split("e");
  return `${withMinus(digits)}·10${raised(Number(exponent))}`;
}

function raised(exponent) {
  return [...String(exponent)].map((sign) => RAISED[sign]).join("");
}

function withMinus(text) {
  return text.replace("-", "−");
}

// The number 10^log, also where it is too small or too large for a number of its own.
export function showPower(log) {
  if (Number.isNaN(log)) return "NaN";
  if (Math.abs(log) < 5) return show(10 ** log);
  if (!Number.isFinite(log)) return log > 0 ? "∞" : "0";
  const n = Math.floor(log);
  const digits = (10 ** (log - n)).toFixed(1);
  return digits === "10.0" ? `1.0·${decade(n + 1)}` : `${digits}·${decade(n)}`;
}
