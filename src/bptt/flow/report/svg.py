"""Line and bar charts as SVG text, for pages that are read on a phone, printed, and opened without a network.

Not matplotlib's: a curve of any length takes a few kilobytes here, the letters stay letters, and a chart takes a
millisecond, so that a report may be rewritten while training goes on. Title, name of what is measured, legend and
notes are HTML around the picture, where they wrap: nothing overlaps at any width, whatever the fonts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from bptt.flow.diagnosis.profile import Array
from bptt.flow.report.plot import COLOURS

_WIDTH, _HEIGHT = 380, 240  # user units; on a phone one is 0.9 CSS pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 20, 10, 40
_DASHES = ("", "7 4", "2 4", "9 3 2 3")  # with the colours: told apart in print without colour
_COLUMNS = 180  # a longer curve is drawn as the lowest and highest value of this many stretches
_MARKED = 40  # up to this many points each has a dot
_DECADES = 12  # below the highest value, that a logarithmic axis shows
_LARGEST = (
    1e290  # above it a value counts as infinite, below 1 / it as 0: an axis reaches a little further than its values
)
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Curve:
    """Values [n] over x [n]; x counts from 0 if it is not given. What is not finite is a gap."""

    name: str
    y: Array
    x: Array | None = None

    def places(self) -> Array:
        """Return the x of each value [n]; 0, 1, … if none was given."""
        return np.arange(len(self.y), dtype=np.float64) if self.x is None else self.x


@dataclass(frozen=True)
class Mark:
    """A thin line across the chart, at a value of x (upright) or of y, with a word beside it."""

    at: float
    text: str = ""
    upright: bool = True


@dataclass(frozen=True)
class _Axis:
    """From values to user units."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, v = (math.log10(n) if self.log else n for n in (self.low, self.high, value))
        return self.begin + (v - low) / (high - low) * (self.end - self.begin)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values and how they are written."""
        if not self.log:
            return [(v, axis_number(v)) for v in _round_values(self.low, self.high)]
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        if last <= first:  # less than a decade or two
            values = [m * 10.0**e for e in range(first - 1, last + 1) for m in (1, 2, 5)]
            return [(v, axis_number(v)) for v in values if self.low <= v <= self.high]
        stride = math.ceil((last - first) / 5)
        return [(10.0**e, "10" + str(e).translate(_SUPERSCRIPT)) for e in range(first, last + 1, stride)]


def line_chart(
    title: str, x: str, y: str, curves: Sequence[Curve], marks: Sequence[Mark] = (), log: bool = True
) -> str:
    """A figure element with the curves; `x` and `y` name the axes with their units ("log scale" is added to y's)."""
    shown, note = _shown(curves, log)
    if not shown:
        return _figure(title, "", "<p>Nothing to draw: every value is zero or not finite.</p>")
    marks, without = _drawable(marks, shown, log)
    note = " ".join(filter(None, (note, without)))
    across, up = _axes(shown, marks, log)
    parts = [_grid(across, up, x)]
    points = [(across(float(p)), up(float(v))) for c in shown for p, v in zip(c.places(), c.y, strict=True) if v == v]
    drawn = [_mark(mark, across, up, points) for mark in marks]
    parts += [line for line, _ in drawn]
    parts += [_path(curve, n, across, up) for n, curve in enumerate(shown)]
    parts += [word for _, word in drawn]  # above the curves, with a white edge
    below = _legend(shown) if len(curves) > 1 else ""
    picture = _measured(y + (", log scale" if log else "")) + _svg(parts, f"{title}: {y} over {x}")
    return _figure(title, picture, below + (f"<p>{escape(note)}</p>" if note else ""))


def bar_chart(title: str, x: str, bars: dict[str, float]) -> str:
    """A figure element with a bar for each share, from 0 to 1."""
    bottom = 26 * len(bars) + 8
    across = _Axis(0, 1, _LEFT, _WIDTH - _RIGHT - 30)
    parts = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        place = across(value)
        parts.append(f'<path class="g" d="M{place:.1f} 4V{bottom}"/>')
        parts.append(f'<text x="{place:.1f}" y="{bottom + 15}" text-anchor="middle">{value:.0%}</text>')
    for n, (name, share) in enumerate(bars.items()):
        top, width = 8 + 26 * n, max(0.0, across(share) - _LEFT)
        parts.append(f'<rect x="{_LEFT}" y="{top}" width="{width:.1f}" height="17" fill="{COLOURS[0]}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{top + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<text class="m" x="{_LEFT + width + 5:.1f}" y="{top + 13}">{_share(share)}</text>')
    return _figure(title, _measured(x) + _svg(parts, f"{title}: {x}", bottom + 22), "")


def thinned(x: Array, y: Array) -> tuple[Array, Array]:
    """At most 2 points for each of 180 stretches, the lowest and the highest value: no peak is lost."""
    if len(y) <= 2 * _COLUMNS:
        return x, y
    kept: list[int] = []
    for piece in np.array_split(np.arange(len(y)), _COLUMNS):
        values = y[piece]
        if np.isfinite(values).any():
            kept += sorted({int(piece[np.nanargmin(values)]), int(piece[np.nanargmax(values)])})
        else:
            kept.append(int(piece[0]))
    return x[kept], y[kept]


def _shown(curves: Sequence[Curve], log: bool) -> tuple[list[Curve], str]:
    """The curves that have something to draw, what cannot be drawn as NaN; and what must be said about the rest."""
    arrays = _drawable_values(curves, log)
    kept = _kept(arrays)
    shown = [
        Curve(c.name, *thinned(c.places()[kept[: len(a)]], a[kept[: len(a)]])[::-1])
        for c, a in zip(curves, arrays, strict=True)
        if np.isfinite(a).any()
    ]
    return shown, _not_drawn(curves, arrays, log)


def _drawable_values(curves: Sequence[Curve], log: bool) -> list[Array]:
    """The values of each curve; NaN where they are not finite, or a logarithmic axis cannot show them."""
    arrays = [np.where(np.abs(c.y) < 1 / _LARGEST, 0.0, c.y.astype(np.float64)) for c in curves]
    arrays = [np.where((np.abs(a) <= _LARGEST) & ((a > 0) | (not log)), a, np.nan) for a in arrays]
    if not log:
        return arrays
    top = max((float(np.nanmax(a)) for a in arrays if np.isfinite(a).any()), default=math.nan)
    return [np.where(a >= top * 10.0**-_DECADES, a, np.nan) for a in arrays]


def _not_drawn(curves: Sequence[Curve], arrays: Sequence[Array], log: bool) -> str:
    """A sentence about the values that are not drawn; "" where all are."""
    missing = [(c.name, int(np.isnan(a).sum()), len(a)) for c, a in zip(curves, arrays, strict=True)]
    told = ", ".join(f"{name} {n:,} of {of:,}" for name, n, of in missing if n)
    why = f"0, not finite, or more than {_DECADES} decades below the highest" if log else "not finite"
    return f"Not drawn ({why}): {told}." if told else ""


def _drawable(marks: Sequence[Mark], curves: Sequence[Curve], log: bool) -> tuple[list[Mark], str]:
    """The marks that the axes can show, and what must be said about the rest."""
    top = max(float(np.nanmax(c.y)) for c in curves)
    low, high = (top * 10.0**-_DECADES, top * 10.0**_DECADES) if log else (-_LARGEST, _LARGEST)

    def fits(mark: Mark) -> bool:
        return math.isfinite(mark.at) and (mark.upright or low <= mark.at <= high)

    missing = [m.text or f"{m.at:g}" for m in marks if not fits(m) and not m.upright]
    why = f"0 or less, not finite, or more than {_DECADES} decades from the curves" if log else "not finite"
    return list(filter(fits, marks)), f"No line at ({why}): {'; '.join(missing)}." if missing else ""


def _kept(arrays: Sequence[Array]) -> NDArray[np.bool_]:
    """Which places of curves over the same x are drawn: all, but for an end of more than half where there is nothing."""
    longest = max(len(a) for a in arrays)
    kept = np.ones(longest, dtype=np.bool_)
    if any(len(a) != longest for a in arrays):
        return kept
    there = np.flatnonzero(np.isfinite(np.stack(arrays)).any(0))
    if len(there) and there[0] > longest / 2:
        kept[: max(0, int(there[0]) - 1)] = False
    if len(there) and longest - there[-1] > longest / 2:
        kept[int(there[-1]) + 2 :] = False
    return kept


def _axes(curves: Sequence[Curve], marks: Sequence[Mark], log: bool) -> tuple[_Axis, _Axis]:
    places = np.concatenate([c.places() for c in curves])
    values = np.concatenate([c.y for c in curves])
    left, right = float(places.min()), float(places.max())
    if left == right:
        left, right = left - 0.5, right + 0.5
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    inside = [m.at for m in marks if not m.upright]
    low, high = min([low, *inside]), max([high, *inside])
    if log:
        low, high = low / 1.6, high * 1.6
        if high / low < 10:  # rounding must not look like movement
            low, high = low / 2, high * 2
    else:
        edge = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
        low, high = low - edge, high + edge
    return _Axis(left, right, _LEFT, _WIDTH - _RIGHT), _Axis(low, high, _HEIGHT - _BOTTOM, _TOP, log)


def _grid(across: _Axis, up: _Axis, x: str) -> str:
    parts = [f'<path class="a" d="M{_LEFT} {_TOP}V{up.begin}H{_WIDTH - _RIGHT}"/>']
    for value, text in up.ticks():
        place = up(value)
        parts.append(f'<path class="g" d="M{_LEFT} {place:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{text}</text>')
    for value, text in across.ticks():
        if value == round(value):
            place = across(value)
            parts.append(f'<path class="a" d="M{place:.1f} {up.begin}v4"/>')
            parts.append(f'<text x="{place:.1f}" y="{up.begin + 17}" text-anchor="middle">{text}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>')
    return "".join(parts)


def _mark(mark: Mark, across: _Axis, up: _Axis, points: Sequence[tuple[float, float]]) -> tuple[str, str]:
    """The line and its word, which stands at the end where it hides fewer of the points."""
    left, right = across.begin, across.end
    if mark.upright:
        if not across.low <= mark.at <= across.high:
            return "", ""
        place = across(mark.at)
        before = place > 0.6 * _WIDTH
        word = _word(place + (-5 if before else 5), _TOP + 11, mark.text, ends=before)
        return f'<path class="k" d="M{place:.1f} {_TOP}V{up.begin}"/>', word
    place, wide = up(mark.at), 6.2 * len(mark.text)
    near = [x for x, y in points if place - 18 < y < place + 3]
    at_end = sum(x > right - wide for x in near) <= sum(x < left + wide for x in near)
    word = _word(right - 2 if at_end else left + 3, place - 4, mark.text, ends=at_end)
    return f'<path class="k" d="M{left} {place:.1f}H{right}"/>', word


def _word(x: float, y: float, text: str, ends: bool) -> str:
    """Text that begins, or ends, at a place."""
    anchor = "end" if ends else "start"
    return f'<text class="m" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>' if text else ""


def _path(curve: Curve, n: int, across: _Axis, up: _Axis) -> str:
    """One curve, in pieces where values are missing; a dot where there are few points, or one stands alone."""
    points = [
        None if math.isnan(v) else f"{across(float(p)):.1f} {up(float(v)):.1f}"
        for p, v in zip(curve.places(), curve.y, strict=True)
    ]
    colour, dash = COLOURS[n % len(COLOURS)], _DASHES[n % len(_DASHES)]
    dots = "".join(f"M{p}h0" for p in _dotted(points))
    style = f'stroke-dasharray="{dash}"' if dash else ""
    path = f'<path class="c" stroke="{colour}" {style} d="{_line(points)}"/>'
    return path + (f'<path class="d" stroke="{colour}" d="{dots}"/>' if dots else "")


def _line(points: Sequence[str | None]) -> str:
    """The commands of a path through the points, which begins again after each gap."""
    line, before = [], None
    for point in points:
        if point is not None:
            line.append(("L" if before is not None else "M") + point)
        before = point
    return "".join(line)


def _dotted(points: Sequence[str | None]) -> list[str]:
    """The points that get a dot: all of a few; of many, those that have a gap on both sides."""
    if len(points) <= _MARKED:
        return [p for p in points if p is not None]
    around = zip([None, *points[:-1]], points, [*points[1:], None], strict=True)
    return [p for before, p, after in around if p is not None and before is None and after is None]


def _legend(curves: Sequence[Curve]) -> str:
    keys = []
    for n, curve in enumerate(curves):
        colour, dash = COLOURS[n % len(COLOURS)], _DASHES[n % len(_DASHES)]
        style = f' stroke-dasharray="{dash}"' if dash else ""
        line = f'<path class="c" stroke="{colour}"{style} d="M1 5h28"/>'
        keys.append(
            f'<span class="key"><svg viewBox="0 0 30 10" width="30" height="10" aria-hidden="true">{line}</svg> '
            f"{escape(curve.name)}</span>"
        )
    return f'<p class="legend">{" ".join(keys)}</p>'


def _svg(parts: Sequence[str], label: str, height: int = _HEIGHT) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _measured(name: str) -> str:
    """What a chart shows, and in which unit, above it."""
    return f"<p>{escape(name)}</p>"


def _figure(title: str, picture: str, below: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{picture}{below}</figure>"


def _round_values(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def axis_number(value: float) -> str:
    """Write a number as it stands at an axis: 1,000, 0.25, 2·10⁻⁷."""
    if value == round(value) and abs(value) < 1e6:
        return f"{value:,.0f}".replace("-", "−")
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}".replace("-", "−")
    digits, power = f"{value:.2e}".split("e")
    return f"{float(digits):g}·10{str(int(power)).translate(_SUPERSCRIPT)}".replace("-", "−")


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 or share == 0 else f"{share:.1%}"
