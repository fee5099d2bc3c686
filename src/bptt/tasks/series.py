"""Forecast series: many-to-many, linear (lecture lines 7 and 8).

At each step t the network forecasts the targets at t+1 … t+N from all that came before. `bptt.tasks.encoding` says what it
sees and what it is asked for; this file says in which order: lanes for training, windows for judging, and the end of
each series for `bptt predict`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bptt.errors import InputError
from bptt.options import PredictOptions, SeriesOptions
from bptt.tasks.base import Batch, Shard, Sizes, Stream, Task
from bptt.tasks.encoding import Encoding, Tape
from bptt.tasks.reading.csv_and_parquet import csv_line, read_table
from bptt.tasks.reading.panel import Columns, Member, Panel, check_vary, check_width, divide, read_panel, same_spacing
from bptt.tasks.reading.scaling import FAR
from bptt.tasks.reading.times import Spacing, is_month_end, write_moment
from bptt.tasks.yardsticks import find_season
from bptt.typed import Json

WARM_UP = 256
"""Steps that a window of the validation part reads before the first that it is judged by."""

WINDOW = 512
"""The validation part is read in windows of so many judged steps, side by side."""

LANES = 64
"""So many series or windows are judged side by side."""

Values = NDArray[np.float64]
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Series(Task):
    """The series of a table, read, checked, divided by time, and encoded by what the training part says.

    Attributes:
        encoding: what the network sees and is asked for.
        training: the tape of the training parts; nothing later is on it.
    """

    name = "series"
    carries_state = True
    unit = "forecasts"
    metric = "scaled squared error"

    def __init__(self, options: SeriesOptions) -> None:
        _check_options(options)
        self.options = options
        self.columns = Columns.of(options.target, options.inputs, options.time, options.id)
        self.panel = read_panel(read_table(options.data), self.columns)
        path, share, horizon = str(options.data), options.test, options.horizon
        series = self.panel.series
        season = options.season or 1
        self.divisions = [divide(s, share, horizon, season, path) for s in series]
        parts = [s.head(d.validation) for s, d in zip(series, self.divisions, strict=True)]
        check_vary(parts, self.columns, path)
        if options.season is None:
            season = find_season([p.targets for p in parts], horizon)
        self.encoding = Encoding.of(parts, horizon, season)
        _check_near(series, self.columns, self.encoding, path)
        self.training = self.encoding.tape(parts)

    def sizes(self) -> Sizes:
        """D inputs and N·K outputs."""
        return Sizes(outputs=self.encoding.outputs, head="linear", inputs=self.encoding.width)

    def stream(self, shard: Shard) -> "SeriesStream":
        """Lanes over the training parts, without end."""
        return SeriesStream(self.encoding, self.training, self.options.batch, self.options.chunk, shard)

    def validation(self, shard: Shard) -> Iterator[Batch]:
        """Every forecast of a value of the validation part from before it, in windows with a warm-up, side by side."""
        heads = [s.head(d.test) for s, d in zip(self.panel.series, self.divisions, strict=True)]
        tape = self.encoding.tape(heads)
        windows = []
        for span, d in zip(tape.spans(), self.divisions, strict=True):
            stop = span.stop - 1  # the last origin with something to forecast
            for first in range(span.start + d.validation - 1, stop, WINDOW):
                windows.append(Window(max(first - WARM_UP, span.start), first, min(first + WINDOW, stop)))
        for piece in Lanes(windows, LANES).pieces(self.options.chunk):
            yield _batch(self.encoding, tape, piece, shard)

    def score(self, loss: float) -> float:
        """The mean squared error, in units in which the seasonal-naive forecast of the training part has 1."""
        return loss

    def report(self, model: nn.Module) -> Json:
        """Errors of all forecasts from within the test part, next to those of the yardsticks for the same values.

        An origin counts if all its N forecast values lie in the test part; the state is carried from the series' beginning.
        """
        tape = self.encoding.tape(self.panel.series)
        windows = [
            Window(span.start, span.start + d.test - 1, span.stop - self.options.horizon)
            for span, d in zip(tape.spans(), self.divisions, strict=True)
        ]
        errors = Errors(self.encoding, len(self.columns.targets))
        for piece, z in run(model, tape, windows):
            errors.add(tape, piece.at[piece.judged], z[piece.judged])
        return errors.report(self.columns.targets)

    def spec(self) -> Json:
        """Columns, spacing, and the encoding."""
        p = self.panel
        times = {"spacing": None if p.spacing is None else p.spacing.json(), "dates": p.notation.dates}
        return {"columns": self.columns.json(), "times": times, "encoding": self.encoding.json()}

    def encode_as(self, spec: Json) -> None:
        """With the run's scaling and season."""
        self.encoding = Encoding.from_json(spec["encoding"])
        _check_like_training(self.panel, spec, self.columns, self.encoding, str(self.options.data))
        parts = [s.head(d.validation) for s, d in zip(self.panel.series, self.divisions, strict=True)]
        self.training = self.encoding.tape(parts)

    def fingerprint(self) -> Json:
        """Rows, columns, and a hash of the columns that are used."""
        columns = [c for _, c in self.columns.roles()]
        return {"rows": sum(map(len, self.panel.series)), "columns": columns, "sha256": self.panel.sha256}

    @staticmethod
    def predict(model: nn.Module, spec: Json, options: PredictOptions) -> Iterator[str]:
        """CSV: the `horizon` rows that follow each series of --data: its id, the time (or step), and the targets."""
        if options.data is None:
            raise InputError("no data to go on from: give --data with a table like the one that the run was trained on")
        columns, encoding = Columns.from_json(spec["columns"]), Encoding.from_json(spec["encoding"])
        panel = read_panel(read_table(options.data), columns, wanted_by="the run was trained with it")
        _check_like_training(panel, spec, columns, encoding, str(options.data))
        times = _times_ahead(panel, spec, encoding.horizon)
        return _forecast_lines(model, columns, encoding, panel, times)


class SeriesStream(Stream):
    """Lanes over the tape of the training parts: lane b of B begins at place b·n/B and reads on, round and round.

    As all lanes advance together, the steps that each has read are the position of all of them. A row is reset where a
    series begins, and where its lane does.
    """

    def __init__(self, encoding: Encoding, tape: Tape, lanes: int, chunk: int, shard: Shard) -> None:
        self._encoding, self._tape, self._chunk, self._shard = encoding, tape, chunk, shard
        self._first = np.arange(lanes) * len(tape) // lanes  # place at which each lane begins
        self._read = 0  # steps that each lane has read

    def __next__(self) -> Batch:
        steps = self._read + np.arange(self._chunk)[:, None]
        at = (self._first + steps) % len(self._tape)  # T, lanes
        starts = (at == self._tape.begin[at]) | (steps == 0)
        self._read += self._chunk
        return _batch(self._encoding, self._tape, Piece(at, np.ones_like(starts), starts), self._shard)

    def position(self) -> Json:
        """The steps that each of so many lanes has read."""
        return {"lanes": len(self._first), "steps": self._read}

    def position_after(self, batches: int) -> Json:
        """As `Stream.position_after`."""
        return {"lanes": len(self._first), "steps": batches * self._chunk}

    def seek(self, position: Json) -> None:
        """Raises InputError for a position among another number of lanes: it names other places."""
        if position["lanes"] != len(self._first):
            raise InputError(
                f"the position is one of {position['lanes']} lanes, the stream has {len(self._first)}: "
                f"use --batch {position['lanes']}"
            )
        self._read = int(position["steps"])

    @property
    def epoch(self) -> float:
        """Passes over the training parts."""
        return self._read * len(self._first) / len(self._tape)


@dataclass(frozen=True)
class Window:
    """A stretch of a tape: read from `begin` from zero state, judged from `first`, left before `stop`."""

    begin: int
    first: int
    stop: int


@dataclass(frozen=True)
class Piece:
    """Some steps of all lanes side by side, each [T, lanes].

    Attributes:
        at: the place on the tape that is read; any, where a lane has ended.
        judged: True where what the network forecasts counts.
        starts: True where a series or window begins.
    """

    at: Indices
    judged: Flags
    starts: Flags


class Lanes:
    """Windows packed into lanes of about the same length: each lane reads its windows one after the other."""

    def __init__(self, windows: Sequence[Window], lanes: int) -> None:
        rows: list[list[Window]] = [[] for _ in range(min(lanes, len(windows)))]
        lengths = [0] * len(rows)
        for w in sorted(windows, key=lambda w: w.begin - w.stop):  # the longest first
            shortest = lengths.index(min(lengths))
            rows[shortest].append(w)
            lengths[shortest] += w.stop - w.begin
        shape = (max(lengths), len(rows))
        self._all = Piece(np.zeros(shape, np.int64), np.zeros(shape, np.bool_), np.zeros(shape, np.bool_))
        for row, queue in enumerate(rows):
            step = 0
            for w in queue:
                length = w.stop - w.begin
                self._all.at[step : step + length, row] = np.arange(w.begin, w.stop)
                self._all.judged[step + w.first - w.begin : step + length, row] = True
                self._all.starts[step, row] = True
                step += length

    def pieces(self, steps: int) -> Iterator[Piece]:
        """One after the other, up to `steps` steps long."""
        for k in range(0, len(self._all.at), steps):
            part = slice(k, k + steps)
            yield Piece(self._all.at[part], self._all.judged[part], self._all.starts[part])


def _batch(encoding: Encoding, tape: Tape, piece: Piece, shard: Shard) -> Batch:
    """What a piece holds for this process: x [T, B, D], y and mask [T, B, N·K]. Counted are the losses of all."""
    y, known = encoding.targets(tape, piece.at)
    mask = known & piece.judged[..., None, None]
    rows = shard.rows(piece.at.shape[1])
    x, y, mine = tape.x[piece.at[:, rows]], y[:, rows], mask[:, rows]
    flat = (*y.shape[:2], encoding.outputs)
    reset = _reset(piece.starts[:, rows])
    return Batch(
        torch.from_numpy(x),
        torch.from_numpy(y.reshape(flat)),
        torch.from_numpy(mine.reshape(flat)),
        int(mask.sum()),
        reset,
    )


def _reset(starts: Flags) -> Tensor | None:
    return torch.from_numpy(np.ascontiguousarray(starts)) if starts.any() else None


@torch.no_grad()
def run(model: nn.Module, tape: Tape, windows: Sequence[Window], steps: int = 256) -> Iterator[tuple[Piece, Values]]:
    """Read windows of a tape side by side, the state carried: each piece with the network's outputs, [T, lanes, N·K]."""
    model.eval()
    weight = next(model.parameters())
    state: Any = None
    for piece in Lanes(windows, LANES).pieces(steps):
        x = torch.from_numpy(tape.x[piece.at]).to(weight.device, weight.dtype)
        reset = _reset(piece.starts)
        z, state = model(x, state, None if reset is None else reset.to(weight.device))
        yield piece, z.double().cpu().numpy()


class Errors:
    """Errors of the network's forecasts and of the two yardsticks, over the same origins and horizons."""

    def __init__(self, encoding: Encoding, targets: int) -> None:
        self._encoding = encoding
        self._absolute = np.zeros((3, targets))  # Σ |error| of network, naive, seasonal-naive, in the data's units
        self._squared = np.zeros((3, targets))
        self._scaled = np.zeros(3)  # Σ (error / σ_h)²
        self._origins = 0

    def add(self, tape: Tape, at: Indices, z: Values) -> None:
        """Count the forecasts z [n, N·K] made at the places `at` [n]."""
        scale = tape.scale[at][:, None]  # n, 1, K
        truth = tape.y[at[:, None] + np.arange(1, self._encoding.horizon + 1)] * scale  # n, N, K
        naive = tape.y[at][:, None] * scale
        seasonal = self._encoding.base(tape, at)[0] * scale
        for i, forecast in enumerate((self._encoding.forecasts(tape, at, z), naive, seasonal)):
            wrong = forecast - truth
            self._absolute[i] += np.abs(wrong).sum(axis=(0, 1))
            self._squared[i] += (wrong**2).sum(axis=(0, 1))
            self._scaled[i] += ((wrong / scale / self._encoding.errors) ** 2).sum()
        self._origins += len(at)

    def report(self, targets: Sequence[str]) -> Json:
        """Mean absolute and root mean squared errors of each target, in its units."""
        season, horizon = self._encoding.season, self._encoding.horizon
        names = ["", ", naive (last value)"] + ([f", seasonal-naive (season {season})"] if season > 1 else [])
        count = self._origins * horizon
        out: Json = {}
        for k, target in enumerate(targets):
            for i, name in enumerate(names):
                out[f"{target}: mean absolute error{name}"] = float(self._absolute[i, k] / count)
            for i, name in enumerate(names):
                out[f"{target}: root mean squared error{name}"] = float(np.sqrt(self._squared[i, k] / count))
        for i, name in enumerate(names):
            out[f"{Series.metric}{name or ', test'}"] = float(self._scaled[i] / (count * len(targets)))
        out["forecast horizon (steps)"] = horizon
        out["forecasts compared"] = self._origins
        return out


def _check_options(options: SeriesOptions) -> None:
    """What can be said without the data."""
    for name in ("horizon", "chunk", "batch", "season"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: wanted a whole number from 1")
    if not 0 < options.test < 1:
        raise InputError(f"--test {options.test:g}: wanted a share between 0 and 1, e.g. 0.2")


def _check_near(series: Sequence[Member], columns: Columns, encoding: Encoding, path: str) -> None:
    """Refuse a cell so far from the training rows that the network's arithmetic cannot hold it."""
    for s in series:
        far = encoding.farthest(s)
        if far is not None:
            step, place = far
            cell = np.concatenate([s.targets[step], s.inputs[step]])[place]
            column = (*columns.targets, *columns.inputs)[place]
            raise InputError(f"{path} row {s.rows[step]}: column {column!r} is {cell:g}, {FAR}")


def _check_like_training(panel: Panel, spec: Json, columns: Columns, encoding: Encoding, path: str) -> None:
    """Refuse data of another spacing or size than the run was trained on, or too short to go on from."""
    if panel.spacing is not None:
        trained = Spacing(**spec["times"]["spacing"])
        if panel.notation.dates != spec["times"]["dates"] or not same_spacing(panel.spacing, trained):
            raise InputError(
                f"{path}: the step of the times is {panel.spacing.words()}, the run was trained on {trained.words()}: "
                "give data of that step"
            )
    for s in panel.series:
        if len(s) < encoding.season + 1:
            whose = f"series {s.name!r} has" if s.name else "there are"
            raise InputError(
                f"{path}: {whose} {len(s)} rows, wanted {encoding.season + 1} or more, one season and a step: give more"
            )
    check_width(panel.series, columns, path)
    _check_near(panel.series, columns, encoding, path)


def _times_ahead(panel: Panel, spec: Json, steps: int) -> list[list[str]]:
    """The times of the next steps of each series, as they are written; without a time column, the numbers of the rows."""
    month_ends = bool(
        (spec["times"]["spacing"] or {}).get("month_end")
    )  # of three rows on the 30th the run may know better
    out = []
    for s in panel.series:
        assert s.spacing is not None  # every series has two rows
        month_end = s.spacing.month_end or (month_ends and is_month_end(s.last))
        spacing = replace(s.spacing, month_end=month_end)
        out.append([write_moment(moment, *panel.notation) for moment in spacing.after(s.last, steps)])
    return out


def _forecast_lines(
    model: nn.Module, columns: Columns, encoding: Encoding, panel: Panel, times: list[list[str]]
) -> Iterator[str]:
    head = [columns.id] if columns.id is not None else []
    yield csv_line([*head, columns.time or "step", *columns.targets])
    tape = encoding.tape(panel.series)
    spans = tape.spans()
    ends = {span.stop - 1: i for i, span in enumerate(spans)}  # last place of each series
    forecasts: dict[int, Values] = {}
    for piece, z in run(model, tape, [Window(s.start, s.stop - 1, s.stop) for s in spans]):
        at = piece.at[piece.judged]
        for place, values in zip(at, encoding.forecasts(tape, at, z[piece.judged]), strict=True):
            forecasts[ends[int(place)]] = values
    for i, series in enumerate(panel.series):
        for when, row in zip(times[i], forecasts[i], strict=True):
            yield csv_line([*([series.name] if head else []), when, *(f"{v:.8g}" for v in row)])
