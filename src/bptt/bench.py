"""`bptt bench`: one training step of torch.nn's layers against bptt's, on the user's own machine.

A training step is the forward pass and the gradients to weights and biases. At each point the gradients are compared with
torch.nn's in float64 first, and no ratio is given where they differ. Then both run in turn, so that whatever else the
machine is doing affects both, and the medians count.

The limit is what the matrix products alone take at the rate of a large one, measured here: for T steps, batch B, D inputs, H
hidden units and G gates, W_ih x (forward, weight gradient) and W_hh h (forward, weight gradient, gradient of h) take
    2 B T G H (2 D + 3 H)   operations.
"""

import copy
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from bptt.errors import InputError
from bptt.files import writing
from bptt.fusing import fuse
from bptt.options import BenchOptions
from bptt.terminal import visible

_LAYERS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
_GATES = {"rnn": 1, "gru": 3, "lstm": 4}
_SQUARE = 2048  # rows and columns of the large matrix product
_RUNS = 3  # of each side, at least
_COLORS = ("#9db4c8", "#1f5f99", "#b5542c", "#6b8e5a", "#7d5a9b", "#c9a227")


@dataclass(frozen=True)
class Point:
    """One size, and what was measured at it.

    Attributes:
        torch_seconds, bptt_seconds: median time of a training step.
        limit_seconds: what its matrix products would take at the rate of a large one.
        error: distance of bptt's outputs and gradients from the float64 reference, relative in norm, of the worst tensor.
        allowed: the largest distance that rounding explains.
    """

    cell: str
    batch: int
    hidden: int
    torch_seconds: float
    bptt_seconds: float
    limit_seconds: float
    error: float
    allowed: float

    @property
    def right(self) -> bool:
        """Whether the gradients are right: those of the reference, but for rounding."""
        return self.error <= self.allowed  # False for nan

    @property
    def ratio(self) -> float:
        """How many times as fast as torch.nn bptt is."""
        return self.torch_seconds / self.bptt_seconds


def run(options: BenchOptions) -> int:
    """Measure, print the table and draw the picture. Returns 0; 1 if a gradient is wrong; 130 after Ctrl-C.

    Raises InputError if a size cannot be used, or does not fit in memory.
    """
    _check(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    points: list[Point] = []
    console, stopped = Console(highlight=False), False
    try:
        rate = matrix_rate(getattr(torch, options.dtype))
        console.print(_title(options, rate))
        # Drawn when a point is done and never between: a thread that draws would be measured too.
        with Live(_table(points), console=console, auto_refresh=False) as live:
            for point in _measured(options, rate):
                points.append(point)
                live.update(_table(points), refresh=True)
    except KeyboardInterrupt:
        stopped = True
    if not console.is_terminal:
        console.print()  # which rich leaves out there
    if stopped:
        console.print("stopped: this is what was measured until then")
    _conclude(points, options, console)
    if stopped:
        return 130
    return 0 if all(point.right for point in points) else 1


def matrix_rate(dtype: torch.dtype, size: int = _SQUARE) -> float:
    """Return the operations a second of a large matrix product, the best of several."""
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    taken: list[float] = []
    end = time.perf_counter() + 1
    while len(taken) < _RUNS + 1 or time.perf_counter() < end:
        taken.append(_seconds(lambda: a @ b))
    return 2 * size**3 / min(taken)


def measure(cell: str, batch: int, hidden: int, options: BenchOptions, rate: float) -> Point:
    """Return one point: both sides' gradients compared, and then their times, measured in turn until the time is up.

    `rate` is that of a large matrix product, in operations a second.
    """
    dtype = getattr(torch, options.dtype)
    inputs = options.inputs or hidden
    theirs = _LAYERS[cell](inputs, hidden, dtype=dtype)
    ours = fuse(copy.deepcopy(theirs))
    x = torch.randn(options.steps, batch, inputs, dtype=dtype)
    d_outputs = torch.randn(options.steps, batch, hidden, dtype=dtype)
    error, allowed = _error(theirs, ours, x, d_outputs)
    seconds: dict[nn.RNNBase, list[float]] = {theirs: [], ours: []}
    end = time.perf_counter() + options.seconds
    while len(seconds[ours]) < _RUNS or time.perf_counter() < end:
        for layer, taken in seconds.items():
            taken.append(_seconds(lambda layer=layer: training_step(layer, x, d_outputs)))  # type: ignore[misc]
    operations = 2 * batch * options.steps * _GATES[cell] * hidden * (2 * inputs + 3 * hidden)
    torch_seconds, bptt_seconds = (statistics.median(seconds[layer]) for layer in (theirs, ours))
    return Point(cell, batch, hidden, torch_seconds, bptt_seconds, operations / rate, error, allowed)


def training_step(layer: nn.RNNBase, x: Tensor, d_outputs: Tensor) -> dict[str, Tensor]:
    """Return the outputs y [T, B, H] and the gradients of weights and biases, by name."""
    names, parameters = zip(*layer.named_parameters(), strict=True)
    y = layer(x)[0]
    found = torch.autograd.grad(y, parameters, d_outputs)
    return {"y": y.detach()} | dict(zip(names, found, strict=True))


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _error(theirs: nn.RNNBase, ours: nn.RNNBase, x: Tensor, d_outputs: Tensor) -> tuple[float, float]:
    """Return how far bptt is from torch.nn in float64, and how far it may be.

    It may be off by what the number format allows over T steps, or by twice torch.nn's own error if that is more.
    """
    reference = training_step(copy.deepcopy(theirs).double(), x.double(), d_outputs.double())

    def worst(layer: nn.RNNBase) -> float:
        found = training_step(layer, x, d_outputs)
        errors = [(found[n] - r).norm() / r.norm().clamp_min(1e-30) for n, r in reference.items()]
        return torch.stack(errors).max().item()  # which, unlike Python's max, lets no nan go by

    tolerance = 1e-10 if x.dtype == torch.float64 else 1e-5 if len(x) <= 256 else 1e-4
    return worst(ours), max(tolerance, 2 * worst(theirs))


def _measured(options: BenchOptions, rate: float) -> Iterator[Point]:
    """Measure and yield every point of the grid, the small ones first."""
    for cell in dict.fromkeys(options.cell):
        for hidden in sorted(set(options.hidden)):
            for batch in sorted(set(options.batch)):
                try:
                    yield measure(cell, batch, hidden, options, rate)
                except (MemoryError, RuntimeError) as error:
                    if isinstance(error, RuntimeError) and "allocate" not in str(error):
                        raise  # torch has no class for it on the CPU
                    raise InputError(
                        f"{cell} with batch {batch}, hidden {hidden} and {options.steps} steps does not fit in memory: "
                        "give a smaller --batch, --hidden or --steps"
                    ) from None


def _check(options: BenchOptions) -> None:
    """Raise InputError for options that cannot be measured, before a minute is spent."""
    _check_sizes(options)
    cores = os.cpu_count() or 1
    if options.threads is not None and options.threads > cores:
        raise InputError(f"--threads is {options.threads}, this machine has {cores} cores: give at most {cores}")
    if not 0 < options.seconds < math.inf:
        raise InputError(f"--seconds is {options.seconds}, wanted is a time above 0: give, say, --seconds 1")
    _check_memory(options)
    _check_picture(options.picture)


def _check_sizes(options: BenchOptions) -> None:
    """Raise InputError for a list that is empty, and for a size below 1."""
    sizes = {"batch": options.batch, "hidden": options.hidden, "steps": (options.steps,), "cell": options.cell}
    given = {"inputs": options.inputs, "threads": options.threads}
    sizes |= {name: (value,) for name, value in given.items() if value is not None}
    for name, values in sizes.items():
        if not values:
            raise InputError(f"--{name} is empty: give one or several, separated by spaces")
        wrong = [value for value in values if isinstance(value, int) and value < 1]
        if wrong:
            raise InputError(f"--{name} is {wrong[0]}, at least 1 is wanted: give a positive number")


def _check_memory(options: BenchOptions) -> None:
    """Raise InputError if there is surely too little memory: less than the float64 reference holds at one time."""
    B, H, T = max(options.batch), max(options.hidden), options.steps
    D, G = options.inputs or H, max(_GATES[cell] for cell in options.cell)
    needed = 8 * (2 * G * H * (D + H) + T * B * (D + (G + 2) * H))
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf
    if needed > there:
        raise InputError(
            f"batch {B}, hidden {H} and {T} steps need {needed / 2**30:.3g} GiB at least, this machine has "
            f"{there / 2**30:.3g} GiB of memory: give a smaller --batch, --hidden or --steps"
        )


def _check_picture(picture: Path) -> None:
    """Raise InputError unless --picture is a PNG file that can be written."""
    if picture.suffix.lower() != ".png":
        raise InputError(f"--picture is {picture}, a PNG file is wanted: give a name that ends in .png")
    if picture.is_dir() or not picture.parent.is_dir():
        what = "a folder" if picture.is_dir() else f"in {picture.parent}, which is no folder"
        raise InputError(f"--picture is {picture}, {what}: give a file in a folder that exists")
    if not os.access(picture if picture.exists() else picture.parent, os.W_OK):
        raise InputError(f"--picture is {picture}, which may not be written: give another")


# What is shown --------------------------------------------------------------------------------------------------------


def _title(options: BenchOptions, rate: float) -> str:
    threads = torch.get_num_threads()
    return (
        f"training step, T {options.steps}, D {options.inputs or '= H'}, {options.dtype}, "
        f"{threads} thread{'s' if threads > 1 else ''}; matrix product {rate / 1e9:.0f} GFLOP/s"
    )


def _table(points: list[Point]) -> Table:
    table = Table()
    for heading in ("cell", "B", "H", "torch ms", "bptt ms", "ratio", "of the limit"):
        table.add_column(heading, justify="left" if heading == "cell" else "right")
    for point in points:
        sizes = (point.cell, str(point.batch), str(point.hidden))
        if point.right:
            milliseconds = (f"{1e3 * s:.2f}" for s in (point.torch_seconds, point.bptt_seconds))
            share = point.limit_seconds / point.bptt_seconds
            table.add_row(*sizes, *milliseconds, f"{point.ratio:.2f}x", f"{share:.0%}")
        else:
            table.add_row(*sizes, "–", "–", f"[red]gradients differ by {point.error:.1e}[/red]", "–")
    return table


def _conclude(points: list[Point], options: BenchOptions, console: Console) -> None:
    """Print the mean ratio and what was wrong, and draw the picture."""
    right = [point for point in points if point.right]
    if len(right) < len(points):
        console.print(
            f"at {len(points) - len(right)} of {len(points)} points the gradients differ from the float64 reference by "
            "more than rounding: no ratio there. That is a bug in bptt: please report it with this table"
        )
    if right:
        mean = statistics.geometric_mean(point.ratio for point in right)
        console.print(f"geometric mean: bptt is {mean:.2f}x as fast as torch.nn, over {len(right)} points")
        draw(right, options)
        console.print(Text(f"picture: {visible(options.picture)}"), soft_wrap=True)


def draw(points: list[Point], options: BenchOptions) -> None:
    """Draw the ratio over H to --picture, with a panel for each cell and a line for each batch size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    cells = list(dict.fromkeys(point.cell for point in points))
    batches = sorted({point.batch for point in points})
    figure, grid = plt.subplots(
        1, len(cells), figsize=(1.6 + 3.4 * len(cells), 3.8), dpi=120, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, cell in zip(grid[0], cells, strict=True):
        for n, batch in enumerate(batches):
            line = [(point.hidden, point.ratio) for point in points if (point.cell, point.batch) == (cell, batch)]
            color = _COLORS[n % len(_COLORS)]
            axes.plot([h for h, _ in line], [ratio for _, ratio in line], marker="o", color=color, label=f"B {batch}")
        axes.axhline(1.0, color="black", linewidth=1, linestyle="--")
        widths = sorted({point.hidden for point in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.set_xticks([], minor=True)
        axes.set(xlabel="hidden units H", title=cell, ylim=(0, 1.1 * max(1.0, *(point.ratio for point in points))))
        axes.grid(alpha=0.25)
    grid[0][0].set_ylabel("times as fast as torch.nn")
    grid[0][-1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"bptt, one training step: T {options.steps}, {options.dtype}", fontsize=10)
    with writing(options.picture) as file:
        figure.savefig(file, format="png")
    plt.close(figure)
