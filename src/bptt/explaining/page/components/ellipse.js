// A unit circle and what a 2 × 2 matrix U diag(10^s) Vᵀ makes of it.
import { el, onWidth, svg } from "./dom.js";
import { lagAxis } from "./logchart.js";
import { decade } from "./numbers.js";

const SIZE = 250;
const ROOM = 104; // pixels from the centre

// describe(state) → {U, V, s: log₁₀ of the half axes, label}.
export function circleAndEllipse(page, describe) {
  const host = el("div", { class: "ellipse" });
  page.follow((state) => {
    const { U, V, s, label } = describe(state);
    const larger = Number.isFinite(s[0]) && s[0] < -0.7 ? Math.ceil(-s[0] - 0.3) : 0; // powers of ten that the ellipse is enlarged by
    const sizes = s.map((value) => 10 ** (value + larger));
    const unit = ROOM / Math.max(1, sizes[0] < Infinity ? sizes[0] : 1);
    const root = svg("svg", {
      role: "img",
      "aria-label": label,
      width: SIZE,
      height: SIZE,
      viewBox: `${-SIZE / 2} ${-SIZE / 2} ${SIZE} ${SIZE}`,
    });
    const to = (column, size) => column.map((value, i) => (i === 0 ? 1 : -1) * value * size * unit); // upwards is positive
    const [first, second, before] = [to(column(U, 0), sizes[0]), to(column(U, 1), sizes[1]), to(column(V, 0), 1)];
    root.append(
      svg("path", { class: "cross", d: `M${-ROOM - 12} 0 H${ROOM + 12} M0 ${-ROOM - 12} V${ROOM + 12}` }),
      svg("circle", { class: "circle", r: Math.max(2, unit) }),
      shape(
        U,
        sizes.map((size) => size * unit),
      ),
      svg("path", { class: "axis", d: `M${first.map((v) => -v)} L${first}` }),
      svg("path", { class: "axis thin", d: `M${second.map((v) => -v)} L${second}` }),
      svg("circle", { class: "mark hollow", cx: before[0], cy: before[1], r: 5 }),
      svg("circle", { class: "mark", cx: first[0], cy: first[1], r: 5 }),
    );
    if (larger > 0)
      root.append(
        svg("text", { x: 0, y: SIZE / 2 - 4 }, `ellipse enlarged ${larger < 4 ? 10 ** larger : decade(larger)} times`),
      );
    host.replaceChildren(root);
  });
  return host;
}

// A row of ellipses below a chart, each at its lag and enlarged to the same length. describe(state) → {lags, last, lag}.
export function ellipseStrip(page, describe, pick) {
  const host = el("div", { class: "ellipse strip" });
  let width = 0;
  page.follow((state) => {
    if (width === 0) return;
    const { lags, last, lag } = describe(state);
    const axis = lagAxis(width, last);
    const every = Math.max(1, Math.ceil((34 * last) / width));
    const root = svg("svg", { width, height: 44, viewBox: `0 0 ${width} 44`, "aria-hidden": "true" });
    for (let at = 0; at <= last; at += every) {
      const { U, s } = lags[at];
      const narrow = Math.max(0.06, 10 ** Math.min(0, s[1] - s[0]) || 0);
      const place = svg("g", { transform: `translate(${axis.x(at)} 22)` }, shape(U, [13, 13 * narrow]));
      if (Math.abs(at - lag) * 2 < every || (at === 0 && lag === 0))
        place.append(svg("path", { class: "chosen", d: "M-13 19 H13" }));
      root.append(place);
    }
    host.replaceChildren(root);
  });
  host.addEventListener("click", (event) =>
    pick(lagAxis(width, describe(page.get()).last).lag(event.clientX - host.getBoundingClientRect().left)),
  );
  onWidth(host, (now) => {
    width = now;
    page.refresh();
  });
  return host;
}

const column = (A, j) => A.map((row) => row[j]);

function shape(U, [long, short]) {
  const turn = (-Math.atan2(U[1][0], U[0][0]) * 180) / Math.PI;
  const size = (value) => Math.max(0.7, Number.isFinite(value) ? value : 0);
  return svg("ellipse", { rx: size(long), ry: size(short), transform: `rotate(${Number.isFinite(turn) ? turn : 0})` });
}
