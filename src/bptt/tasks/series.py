"""Forecast series: many-to-many, linear (docs/equations.md, eqs. (7) and (8)).

At each step t the network forecasts the targets at t+1 … t+N from all that came before. `bptt.tasks.series_encoding` says
what it sees and what it is asked for, `bptt.tasks.streams.series` in which order, and `bptt.tasks.scoring.forecast_errors`
how good the forecasts are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bptt.errors import InputError
from bptt.options import PredictOptions, SeriesOptions
from bptt.tasks.base import Batch, Shard, Sizes, Task
from bptt.tasks.reading.csv_and_parquet import read_table
from bptt.tasks.reading.notation import write_moment
from bptt.tasks.reading.panel import Columns, Member, Panel, check_vary, check_width, divide, read_panel, same_spacing
from bptt.tasks.reading.spacing import Spacing, is_month_end
from bptt.tasks.reading.table import csv_line
from bptt.tasks.scaling import FAR
from bptt.tasks.scoring.forecast_errors import ForecastErrors
from bptt.tasks.season import find_season
from bptt.tasks.series_encoding import Encoding, JoinedSeries
from bptt.tasks.streams.series import Lanes, Piece, SeriesStream, Window, make_batch, reset_of
from bptt.typed import Json

WARM_UP = 256
"""Steps that a window of the validation part reads before the first that it is judged by."""

WINDOW = 512
"""Judged steps of each window in which the validation part is read, many side by side."""

LANES = 64
"""Series or windows that are judged side by side."""

Values = NDArray[np.float64]
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Series(Task):
    """The series of a table, read, checked, divided by time, and encoded by what the training part says.

    Attributes:
        encoding: what the network sees and is asked for.
        training: the training parts, joined; nothing later is in them.
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
        self.training = self.encoding.join(parts)

    def sizes(self) -> Sizes:
        """The sizes of the network: D inputs and N·K outputs."""
        return Sizes(outputs=self.encoding.outputs, head="linear", inputs=self.encoding.width)

    def stream(self, shard: Shard) -> SeriesStream:
        """Training batches: lanes over the training parts, without end."""
        return SeriesStream(self.encoding, self.training, self.options.batch, self.options.chunk, shard)

    def validation(self, shard: Shard) -> Iterator[Batch]:
        """Batches with every forecast of a value of the validation part, in windows with a warm-up, side by side."""
        heads = [s.head(d.test) for s, d in zip(self.panel.series, self.divisions, strict=True)]
        joined = self.encoding.join(heads)
        windows = []
        for span, d in zip(joined.spans(), self.divisions, strict=True):
            stop = span.stop - 1  # the last origin with something to forecast
            for first in range(span.start + d.validation - 1, stop, WINDOW):
                windows.append(Window(max(first - WARM_UP, span.start), first, min(first + WINDOW, stop)))
        for piece in Lanes(windows, LANES).pieces(self.options.chunk):
            yield make_batch(self.encoding, joined, piece, shard)

    def score(self, loss: float) -> float:
        """Return the mean squared error itself: the seasonal-naive forecast of the training part has 1."""
        return loss

    def report(self, model: nn.Module) -> Json:
        """Return the errors of all forecasts of the test part, next to those of the yardsticks for the same values.

        Forecasts from a step count if all N values lie in the test part. The state comes from the beginning of the series.
        """
        joined = self.encoding.join(self.panel.series)
        windows = [
            Window(span.start, span.start + d.test - 1, span.stop - self.options.horizon)
            for span, d in zip(joined.spans(), self.divisions, strict=True)
        ]
        errors = ForecastErrors(self.encoding, len(self.columns.targets))
        for piece, z in read_windows(model, joined, windows):
            errors.add(joined, piece.at[piece.judged], z[piece.judged])
        return errors.report(self.columns.targets, self.metric)

    def spec(self) -> Json:
        """What a run folder keeps: columns, spacing, and the encoding."""
        p = self.panel
        times = {"spacing": None if p.spacing is None else p.spacing.json(), "dates": p.notation.dates}
        return {"columns": self.columns.json(), "times": times, "encoding": self.encoding.json()}

    def encode_as(self, spec: Json) -> None:
        """Encode the data with the run's scaling and season from now on. Raises InputError for data unlike the run's."""
        self.encoding = Encoding.from_json(spec["encoding"])
        _check_like_training(self.panel, spec, self.columns, self.encoding, str(self.options.data))
        parts = [s.head(d.validation) for s, d in zip(self.panel.series, self.divisions, strict=True)]
        self.training = self.encoding.join(parts)

    def fingerprint(self) -> Json:
        """What identifies the data: number of rows, the columns that are used, and a hash of them."""
        columns = [c for _, c in self.columns.roles()]
        return {"rows": sum(map(len, self.panel.series)), "columns": columns, "sha256": self.panel.sha256}

    @staticmethod
    def predict(model: nn.Module, spec: Json, options: PredictOptions) -> Iterator[str]:
        """Return CSV lines of the `horizon` rows that follow each series: its id, the time (or step), the targets."""
        if options.data is None:
            raise InputError("no data to go on from: give --data with a table like the one that the run was trained on")
        columns, encoding = Columns.from_json(spec["columns"]), Encoding.from_json(spec["encoding"])
        panel = read_panel(read_table(options.data), columns, wanted_by="the run was trained with it")
        _check_like_training(panel, spec, columns, encoding, str(options.data))
        times = _times_ahead(panel, spec, encoding.horizon)
        return _forecast_lines(model, columns, encoding, panel, times)


@torch.no_grad()
def read_windows(
    model: nn.Module, joined: JoinedSeries, windows: Sequence[Window], steps: int = 256
) -> Iterator[tuple[Piece, Values]]:
    """Yield (piece, outputs z [T, lanes, N·K]) for windows that the network reads side by side, `steps` steps at once."""
    model.eval()
    weight = next(model.parameters())
    state: Any = None
    for piece in Lanes(windows, LANES).pieces(steps):
        x = torch.from_numpy(joined.x[piece.at]).to(weight.device, weight.dtype)
        reset = reset_of(piece.starts)
        z, state = model(x, state, None if reset is None else reset.to(weight.device))
        yield piece, z.double().cpu().numpy()


def _check_options(options: SeriesOptions) -> None:
    """Raise InputError for options that cannot work, whatever the data are."""
    for name in ("horizon", "chunk", "batch", "season"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: wanted a whole number from 1")
    if not 0 < options.test < 1:
        raise InputError(f"--test {options.test:g}: wanted a share between 0 and 1, e.g. 0.2")


def _check_near(series: Sequence[Member], columns: Columns, encoding: Encoding, path: str) -> None:
    """Raise InputError for a cell so far from the training rows that the network's arithmetic cannot hold it."""
    for s in series:
        far = encoding.farthest(s)
        if far is not None:
            step, place = far
            cell = np.concatenate([s.targets[step], s.inputs[step]])[place]
            column = (*columns.targets, *columns.inputs)[place]
            raise InputError(f"{path} row {s.rows[step]}: column {column!r} is {cell:g}, {FAR}")


def _check_like_training(panel: Panel, spec: Json, columns: Columns, encoding: Encoding, path: str) -> None:
    """Raise InputError for data of another spacing or size than the run was trained on, or too short to go on from."""
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
    """Return for each series the times of its next steps, as they are written; without a time column, row numbers."""
    trained = spec["times"]["spacing"] or {}
    month_ends = bool(trained.get("month_end"))  # which three rows on the 30th alone do not show
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
    joined = encoding.join(panel.series)
    spans = joined.spans()
    ends = {span.stop - 1: i for i, span in enumerate(spans)}  # last place of each series
    forecasts: dict[int, Values] = {}
    for piece, z in read_windows(model, joined, [Window(s.start, s.stop - 1, s.stop) for s in spans]):
        at = piece.at[piece.judged]
        for place, values in zip(at, encoding.forecasts(joined, at, z[piece.judged]), strict=True):
            forecasts[ends[int(place)]] = values
    for i, series in enumerate(panel.series):
        for when, row in zip(times[i], forecasts[i], strict=True):
            yield csv_line([*([series.name] if head else []), when, *(f"{v:.8g}" for v in row)])
