/**
 * Places for the numbers of an axis: round numbers between two ends, at most about `most` of them; whole if the
 * ends are.
 * @type {(first: number, last: number, most: number) => number[]}
 */
export function ticks(first, last, most) {
  const span = last - first;
  if (span <= 0) return [first];
  const rough = span / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5].map((n) => n * power).find((size) => size >= rough) ?? 10 * power;
  if (Number.isInteger(first) && Number.isInteger(last)) step = Math.max(1, step);
  /** @type {number[]} */
  const found = [];
  for (let i = Math.ceil(first / step); i * step <= last + step * 1e-9; i++)
    found.push(Number((i * step).toPrecision(12)));
  return found[0] > first && first === 1 ? [1, ...found.filter((at) => at - 1 > step / 2)] : found;
}
