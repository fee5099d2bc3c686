"""Watching how the gradient flows back in training: every --watch-th update leaves its key figures.

The gradient is that of the first process's rows, before the processes' sum and before clipping. Watching reads only: random
numbers, gradients and weights are the same without it, and so is every other line of metrics.jsonl.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch

from bptt.flow import Flow, LayerFlow, watch
from bptt.flow.diagnosis.profile import finite_or_none
from bptt.gradient import Exact, Result, Strategy, Truncated, backward, parse_strategy
from bptt.network import Network
from bptt.options import TrainOptions
from bptt.tasks import Batch, Shard, Task
from bptt.train.loss import counted_loss
from bptt.typed import Json
from bptt.warning import warn

_PLACES = 5  # in the training data, evenly spaced over one pass, from which a batch is watched
_INSTEAD = Truncated(1000)
_MOST = 3000  # steps of a batch that are watched then: what is seen of each takes some kilobytes
_LAGS = (1, 10, 100, 1000)  # borders of the lags whose shares are kept


class WarnOnce:
    """Warns of the first failure, and of none after it: what fails at one update fails at the others too."""

    def __init__(self) -> None:
        self._warned = False

    def __call__(self, text: str) -> None:
        """Warn, unless there was a warning before."""
        if not self._warned:
            self._warned = True
            warn(f"--watch {text}; training goes on, and this is said once")


def figures(flow: Flow) -> list[Json]:
    """Return what metrics.jsonl keeps of a watched update: for each layer and direction its verdict, and its numbers."""
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
        "largest_gain": finite_or_none(layer.growth),
        "decades_per_step": finite_or_none(layer.rate),
        "lag_shares": _shares(layer),
        "saturation": {gate: finite_or_none(share) for gate, share in layer.saturation.items()},
        "dead": layer.dead,
    }


def _shares(layer: LayerFlow) -> dict[str, float | None]:
    """Return the gradient's share by lag: {"0": …, "1-9": …, "10-99": …}."""
    shares = layer.lag_share
    borders = [0, *(b for b in _LAGS if b < len(shares)), len(shares)]
    names = [f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in pairwise(borders)]
    pieces = [float(shares[a:b].sum()) for a, b in pairwise(borders)]
    return dict(zip(names, map(finite_or_none, pieces), strict=True)) if len(shares) else {}


def can_be_watched(strategy: Strategy) -> bool:
    """Return whether training with this strategy can be watched: each window runs forward once, as a whole, and then back.

    The other strategies do not hold a whole window in memory, and watching them would.
    """
    return isinstance(strategy, Exact | Truncated)


def watch_training_data(model: Network, task: Task, options: TrainOptions, updates: int | None = None) -> Flow:
    """Return the gradient's flow on batches from all over the training data, computed as in training but without dropout.

    Where the task carries its state on, each batch begins with the state that the batch before it leaves. A strategy that
    cannot be watched is replaced by truncation to 1000 steps, at the end of each batch and from a state of zeros.

    Args:
        model: the network; nothing of it changes but its gradients, which are None afterwards.
        task: the task, for its training data.
        options: the run's, for the strategy.
        updates: how many updates the weights have had; None if that is not known.
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
        with torch.backends.cudnn.flags(enabled=False):  # it has no backward pass outside training mode
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
    """Yield (before, batch) for batches evenly spaced over one pass through the data; before is None if it is not wanted."""
    stream = task.stream(Shard())
    next(stream)
    total = max(1, int(1 / stream.epoch))
    for at in sorted({total * n // _PLACES for n in range(_PLACES)}):
        stream.seek(stream.position_after(at))
        yield next(stream) if with_before else None, next(stream)


def _end_of(batch: Batch) -> Batch:
    """Return the end of a batch: at most _MOST steps, up to the last one whose loss counts."""
    counts = batch.mask.flatten(1).any(1).nonzero()
    stop = int(counts[-1]) + 1 if len(counts) else len(batch.x)
    steps = slice(max(0, stop - _MOST), stop)
    reset = None if batch.reset is None else batch.reset[steps]
    return Batch(batch.x[steps], batch.y[steps], batch.mask[steps], batch.count, reset)
