"""How the gradient flows back, while training goes on: every so many-th update is watched, and leaves its key figures.

The gradient is that of the first process's rows, before the processes' sum and before clipping. Watching reads only: random
numbers, gradients and weights are the same without it, and so is every other line of metrics.jsonl.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch

from bptt.flow import Flow, LayerFlow, watch
from bptt.gradient import Exact, Result, Strategy, Truncated, backward, parse_strategy
from bptt.network import Network
from bptt.options import TrainOptions
from bptt.tasks import Batch, Json, Shard, Task
from bptt.train.loss import counted_loss
from bptt.warning import warn

_PLACES = 5  # in the training data, evenly spaced over one pass, from which a batch is watched
_INSTEAD = Truncated(1000)
_MOST = 3000  # steps of a batch that are watched then: what is seen of each takes some kilobytes
_LAGS = (1, 10, 100, 1000)  # borders of the lags whose shares are kept


class Once:
    """Says one thing as a warning, and nothing after it: what fails at one update fails at the others too."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, text: str) -> None:
        """Say it, or keep silent."""
        if not self._said:
            self._said = True
            warn(f"--watch {text}; training goes on, and this is said once")


def figures(flow: Flow) -> list[Json]:
    """What metrics.jsonl keeps: for each layer and direction its verdict, and the numbers behind it."""
    words: dict[str, list[str]] = {}
    for finding in flow.verdict():
        words.setdefault(finding.layer, []).append(finding.verdict)
    seen = [_layer_figures(layer) | {"verdict": words.pop(layer.name, [])} for layer in flow]
    return seen + [{"layer": name, "verdict": verdicts} for name, verdicts in words.items()]


def _layer_figures(layer: LayerFlow) -> Json:
    return {
        "layer": layer.name,
        "horizon_steps": layer.horizon,
        "horizon_range_steps": list(layer.horizon_range),
        "lags_steps": layer.lags,
        "largest_gain": _finite(layer.growth),
        "decades_per_step": _finite(layer.rate),
        "lag_shares": _shares(layer),
        "saturation": {gate: _finite(share) for gate, share in layer.saturation.items()},
        "dead": layer.dead,
    }


def _shares(layer: LayerFlow) -> dict[str, float | None]:
    """The gradient's share of lag 0, of lags 1 to 9, 10 to 99, …"""
    shares = layer.lag_share
    borders = [0, *(b for b in _LAGS if b < len(shares)), len(shares)]
    names = [f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in pairwise(borders)]
    pieces = [float(shares[a:b].sum()) for a, b in pairwise(borders)]
    return dict(zip(names, map(_finite, pieces), strict=True)) if len(shares) else {}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def can_be_watched(strategy: Strategy) -> bool:
    """Whether each window runs forward once, as a whole, before its way back; what does not is not held in memory either."""
    return isinstance(strategy, Exact | Truncated)


def watch_training_data(model: Network, task: Task, options: TrainOptions, updates: int | None = None) -> Flow:
    """The flow through `model` on batches from all over the training data, sent back as in training but without dropout.

    Where the state is carried on, each begins with the one that the batch before it leaves. Of a strategy that cannot be
    watched: through windows of 1000 steps at the end of each batch, from a state of zeros.

    `updates`: how many the weights have had, None if that is not known. Changes nothing but the gradients, which are None
    afterwards. cuDNN has no backward pass outside training mode.
    """
    parameter = next(model.parameters())
    strategy, flow = parse_strategy(options.strategy), watch(model, updates=updates)
    in_part = not can_be_watched(strategy)
    if in_part:
        strategy = _INSTEAD
    was_training = model.training

    def send_back(drawn: Batch, carried: Result | None) -> Result:
        batch = (_end_of(drawn) if in_part else drawn).to(parameter.device, parameter.dtype)
        loss = counted_loss(model.head, batch.count)
        model.zero_grad()
        with torch.backends.cudnn.flags(enabled=False):
            return backward(model, batch.x, (batch.y, batch.mask), loss, strategy, carried, reset=batch.reset)

    model.eval()
    try:
        for before, batch in _from_all_over(task, with_before=task.carries_state and not in_part):
            carried = None if before is None else send_back(before, None)
            with flow:
                send_back(batch, carried)
    finally:
        model.zero_grad()
        model.train(was_training)
    return flow


def _from_all_over(task: Task, with_before: bool) -> Iterator[tuple[Batch | None, Batch]]:
    """Batches evenly spaced over one pass through the training data, each with the one before it, if that is wanted."""
    stream = task.stream(Shard())
    next(stream)
    total = max(1, int(1 / stream.epoch))
    for at in sorted({total * n // _PLACES for n in range(_PLACES)}):
        stream.seek(stream.position_after(at))
        yield next(stream) if with_before else None, next(stream)


def _end_of(batch: Batch) -> Batch:
    """The last steps up to the last one whose loss counts."""
    counts = batch.mask.flatten(1).any(1).nonzero()
    stop = int(counts[-1]) + 1 if len(counts) else len(batch.x)
    steps = slice(max(0, stop - _MOST), stop)
    reset = None if batch.reset is None else batch.reset[steps]
    return Batch(batch.x[steps], batch.y[steps], batch.mask[steps], batch.count, reset)
