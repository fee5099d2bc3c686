"""The options of all commands, as dataclasses; `bptt train` has one for each task. Command line, run folder and program
share them.

This module imports neither torch nor numpy: `bptt --help` must answer at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of `bptt train` that all tasks share."""

    task: ClassVar[str]

    cell: Literal["rnn", "gru", "lstm"] = "lstm"
    """The recurrent cell."""
    hidden: int = 128
    """Hidden units of each recurrent layer."""
    layers: int = 1
    """Recurrent layers, one on top of the other."""
    activation: Literal["tanh", "relu", "sigmoid"] = "tanh"
    """Activation of the rnn cell (gru and lstm have their own)."""
    dropout: float = 0.0
    """Share of the units between recurrent layers that is dropped in training; needs --layers 2 or more."""

    strategy: str = "exact"
    """How the gradient travels back: exact (through every step that is at hand), checkpointed:MEMORY (the same within a
    budget, e.g. checkpointed:256MB), or truncated:K1[,K2] (every K1 steps, back through K2 steps); or forward in time
    instead, for small networks: rtrl (exact) or snap1 (its cheap approximation)."""
    batch: int = 32
    """Sequences (or parallel lanes of a stream) in one update, over all processes."""
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adam"
    """The optimizer."""
    lr: float = 2e-3
    """Learning rate at its highest."""
    weight_decay: float = 0.0
    """Weight decay."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls over the budget. It follows the steps, or with --minutes the clock."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    clip: float = 1.0
    """Largest gradient norm; a larger gradient is scaled down to it. 0: never."""

    steps: int | None = None
    """Budget: number of updates."""
    minutes: float | None = None
    """Budget: minutes of training. The one of --steps and --minutes that is given counts; of both, what ends first."""
    validate_every: int = 200
    """Updates between two validations."""
    patience: int = 0
    """Stop after this many validations without a better one. 0: never."""

    watch: int = 100
    """Updates between two looks at how the gradient flows back in time, for RUN/report.html, with --strategy exact or
    truncated. 0: never, and no report."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, …"""
    dtype: Literal["float32", "float64"] = "float32"
    """Number format of weights and states."""
    out: Path | None = None
    """Run folder to make. Default: runs/TASK-N with the next free N."""


@dataclass(frozen=True, kw_only=True)
class TextOptions(TrainOptions):
    """Learn to write: a character model of a text (many-to-many, softmax)."""

    task: ClassVar[str] = "text"

    data: Path | None = None
    """A text file in UTF-8 or UTF-16, or a folder of them. Default: the source text of Python's standard library."""
    glob: str = "**/*"
    """Which files of a folder."""
    lr: float = 4e-3
    """Learning rate at its highest."""
    embedding: int = 64
    """Width of a character's vector."""
    chunk: int = 64
    """Characters of each lane in one update; the hidden state is carried over to the next."""
    hidden: int = 256
    """Hidden units of each recurrent layer."""
    strategy: str = "exact"
    """How the gradient travels back: exact (through the whole chunk, as truncated:CHUNK), checkpointed:MEMORY (the same
    within a budget, e.g. checkpointed:256MB, for long chunks), or truncated:K1[,K2] (every K1 steps, back through K2
    steps, also into the chunk before)."""
    minutes: float | None = 1.5
    """Budget: minutes of training. The one of --steps and --minutes that is given counts; of both, what ends first."""


@dataclass(frozen=True, kw_only=True)
class SeriesOptions(TrainOptions):
    """Forecast: one or several columns of a table over time (many-to-many, linear)."""

    task: ClassVar[str] = "series"

    data: Path
    """A .csv or .parquet file, one row a time step."""
    target: str
    """Column(s) to forecast, separated by commas."""
    time: str | None = None
    """Column with the time of each row (a date, or a number). Default: the rows are in order, evenly spaced."""
    id: str | None = None
    """Column that names the series each row belongs to, if the file holds several."""
    inputs: str = ""
    """Further columns that are known up to the present, separated by commas."""
    horizon: int = 1
    """How many steps ahead to forecast: every one from 1 to this."""
    season: int | None = None
    """Steps in one season, for the seasonal-naive yardstick. Default: found in the training part."""
    test: float = 0.2
    """Share of each series, at its end, that is kept for the test."""
    chunk: int = 64
    """Steps of each lane in one update; the hidden state is carried over to the next."""
    hidden: int = 64
    """Hidden units of each recurrent layer."""
    batch: int = 16
    """Parallel lanes of the stream in one update, over all processes."""
    cell: Literal["rnn", "gru", "lstm"] = "gru"
    """The recurrent cell."""
    steps: int | None = 1000
    """Budget: number of updates."""
    validate_every: int = 50
    """Updates between two validations."""
    patience: int = 10
    """Stop after this many validations without a better one, and keep the weights of the best. 0: never."""


@dataclass(frozen=True, kw_only=True)
class LabelsOptions(TrainOptions):
    """Label whole sequences (many-to-one, softmax; sigmoid for two classes)."""

    task: ClassVar[str] = "labels"

    data: Path
    """Labelled sequences: .csv or .parquet in long format (one row a step), or .ts of the UCR/UEA archive."""
    id: str | None = None
    """Column that names the sequence each row belongs to (not for .ts)."""
    label: str | None = None
    """Column with the sequence's label, the same on each of its rows (not for .ts)."""
    time: str | None = None
    """Column that orders the rows of a sequence. Default: the rows are in order."""
    inputs: str = ""
    """Columns to read, separated by commas. Default: every other column."""
    test_data: Path | None = None
    """A file of the same form for the test. Default: a share of --data, see --test."""
    test: float = 0.2
    """Share of the sequences that is kept for the test, if --test-data is not given."""
    loss_at: Literal["last", "every"] = "last"
    """Where the loss is taken: at the last step only, or at every step."""
    cell: Literal["rnn", "gru", "lstm"] = "gru"
    """The recurrent cell."""
    batch: int = 16
    """Sequences in one update, over all processes."""
    lr: float = 5e-3
    """Learning rate at its highest."""
    steps: int | None = 600
    """Budget: number of updates."""
    validate_every: int = 50
    """Updates between two validations."""


@dataclass(frozen=True, kw_only=True)
class AddingOptions(TrainOptions):
    """The adding problem: add the two marked numbers of a long sequence (many-to-one, linear)."""

    task: ClassVar[str] = "adding"

    length: int = 100
    """Steps of each sequence."""
    lr: float = 5e-3
    """Learning rate at its highest."""
    steps: int | None = 2000
    """Budget: number of updates."""


@dataclass(frozen=True, kw_only=True)
class CopyOptions(TrainOptions):
    """The copy problem: repeat ten symbols after a long pause (many-to-many, softmax)."""

    task: ClassVar[str] = "copy"

    length: int = 20
    """Blank steps between the symbols and their recall."""
    lr: float = 5e-3
    """Learning rate at its highest."""
    steps: int | None = 3000
    """Budget: number of updates."""


TASKS: dict[str, type[TrainOptions]] = {
    o.task: o for o in (TextOptions, SeriesOptions, LabelsOptions, AddingOptions, CopyOptions)
}


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Use a trained run: continue a text, forecast to CSV, label new sequences to CSV."""

    data: Path | None = None
    """New data in the form that the run was trained on; for a text, a file to continue."""
    out: Path | None = None
    """File to write. Default: standard output."""
    prompt: str | None = None
    """Text to continue (text runs)."""
    length: int = 500
    """Characters to write (text runs), or examples to show (adding, copy)."""
    temperature: float = 0.7
    """How freely to draw the next character (text runs): towards 0 the likeliest always, 1 as the model says."""
    seed: int = 0
    """Seed of the drawing."""
    device: str = "cpu"
    """Where to compute."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """See how the gradient flows back in time through a trained run: verdict here, everything in an HTML file."""

    data: Path | None = None
    """Other data in the form that the run was trained on. Default: the run's own."""
    out: Path | None = None
    """HTML file to write; one that exists is replaced. Default: RUN/report.html."""
    device: str = "cpu"
    """Where to compute."""


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """The lecture on backpropagation through time as one page on which every number can be changed.

    With the folder of a run, the network of that run is on it too: its map (t, k), its Jacobian products, its losses.
    """

    out: Path = Path("bptt-explain.html")
    """HTML file to write; it needs neither a network nor a server."""
    open: bool = True
    """Show it in the browser."""
    data: Path | None = None
    """With a run: other data in the form that it was trained on. Default: the run's own."""
    sample: int | None = None
    """With a run: which sequence of the first batch, from 1 on. Default: the first that gets a gradient."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """One training step of torch.nn's layers against bptt's, on this machine and at your sizes."""

    cell: tuple[Literal["rnn", "gru", "lstm"], ...] = ("rnn", "gru", "lstm")
    """The recurrent cells."""
    batch: tuple[int, ...] = (1, 16, 64)
    """Batch sizes B."""
    hidden: tuple[int, ...] = (32, 128, 256)
    """Hidden units H."""
    inputs: int | None = None
    """Inputs D. Default: as many as hidden units."""
    steps: int = 256
    """Steps T of each sequence."""
    dtype: Literal["float32", "float64"] = "float32"
    """Number format."""
    threads: int | None = None
    """Threads for both. Default: torch's own choice."""
    seconds: float = 1.0
    """Seconds to spend on each point; where a step is slow, more: each side runs at least three times."""
    picture: Path = Path("bench.png")
    """PNG file to draw the ratios in; one that exists is replaced."""
