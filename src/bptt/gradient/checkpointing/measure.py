"""What a model needs, measured on the first steps of the sequence; and whether it can be run chunk by chunk at all.

Bytes are those that torch's allocator hands out, at their highest, so they do not depend on what ran before. On the CPU
they are recorded by torch's memory profiler; the working memory of bptt's native core is outside it, and the core tells it.
"""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from bptt.cells import PointwiseCell
from bptt.gradient.base import NO_GRAPH, Chunk, cut
from bptt.gradient.checkpointing.replay import (
    Generators,
    Replay,
    buffers_kept,
    evaluating,
    is_number,
    owned,
    same,
    wants_gradient,
)
from bptt.gradient.collect import ADDED, copied_bytes
from bptt.gradient.inputs.packed import PackedSteps
from bptt.kernels.cpu import LayerSizes, workspace_bytes

_PROBED = 16  # steps on which the model is tried out; then twice as many
_LOOPS = 512  # steps that are tried at most where a chunk's blocks are not those of a shorter one
_SHARE = 32  # or a share 1/32 of the sequence, if that is more
RANDOM = (
    "the same chunk, run again from the same state and with the same random numbers of torch, gave another result: the "
    "model has randomness outside torch's generators (numpy, random, the time), or keeps something from call to call that "
    "belongs into its state; Checkpointed runs each chunk several times: use torch's random numbers, or strategy Exact()"
)


@dataclass(frozen=True)
class NativeWork:
    """Working memory of the native core, which is not torch's allocator's.

    Attributes:
        layers: the sizes of bptt's layers, equal ones once. The layers run one after the other.
        lean: the core keeps the states only.
    """

    layers: tuple[LayerSizes, ...] = ()
    lean: bool = False

    @staticmethod
    def of(model: Callable[..., Any], state: Any, *, lean: bool = False) -> "NativeWork":
        """That of the model's layers, for as many sequences as the state has; nothing for other layers than bptt's."""
        modules = model.modules() if isinstance(model, torch.nn.Module) else ()
        layers: list[Any] = [module for module in modules if hasattr(module, "layer_weights")]
        found: dict[LayerSizes, None] = {}
        for layer in layers:
            batch = max(1, _rows(state, layer.hidden_size) // layer.num_layers)
            if isinstance(layer.cell, PointwiseCell):  # others the core never runs
                stack = (layer.layer_weights(index, 0) for index in range(layer.num_layers))
                found |= dict.fromkeys(LayerSizes.of(layer.cell, weights, batch) for weights in stack)
        return NativeWork(tuple(found), lean)

    def bytes(self, steps: int) -> int:
        """Return what a chunk of that many steps takes: the core's own figure for the layer that takes most."""
        return max((workspace_bytes(sizes, steps, lean=self.lean) for sizes in self.layers), default=0)


def _rows(state: Any, hidden: int) -> int:
    """L·B of a layer with so many hidden units, from the states that have as many; else from the largest."""
    states = [s for s in tree_leaves(state) if isinstance(s, Tensor)]
    own = [s for s in states if s.shape[-1:] == (hidden,)]
    return max((s.numel() for s in own or states), default=0) // hidden


@dataclass(frozen=True)
class Peak:
    """Bytes at the highest while a chunk of c steps goes forward and back: the highest of straight lines a + b c.

    Where chunks of two lengths allocate and free in the same order, each block's size is a straight line through the two
    that were seen, and so is every sum of blocks that are alive together. Else (a loop over the steps in Python, say) the
    line is that through the peaks of the two longest chunks tried, and `tried` holds (length, peak) of all of them.
    """

    lines: tuple[tuple[float, float], ...]
    tried: tuple[tuple[int, int], ...] = ()

    def at(self, steps: int) -> int:
        """Bytes for a chunk of so many steps."""
        for (m, low), (n, high) in pairwise(self.tried):
            if m <= steps <= n:
                return int(low + (high - low) * (steps - m) / (n - m))
        return int(max(a + b * steps for a, b in self.lines))

    @property
    def step_bytes(self) -> float:
        """Bytes that one more step adds to a long chunk."""
        return max(b for _, b in self.lines)

    @staticmethod
    def through(lengths: list[int], values: list[list[int]]) -> "Peak":
        """The lines through values that belong together, seen at two lengths."""
        (m, n), (left, right) = lengths, values
        slopes = [(v - u) / (n - m) for u, v in zip(left, right, strict=True)]
        lines = {(u - b * m, b) for u, b in zip(left, slopes, strict=True)}
        # Of lines with the same slope only the highest; and only those that are the highest somewhere from 1 on.
        highest = {b: max(a for a, c in lines if c == b) for b in {b for _, b in lines}}
        kept: list[tuple[float, float]] = []
        for b in sorted(highest, reverse=True):
            if not kept or highest[b] + b > max(a + c for a, c in kept):
                kept.append((highest[b], b))
        return Peak(tuple(kept))


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        state_bytes: one state, and the random generators if the model uses them: what a snapshot takes.
        parameter_bytes: Σ over the tensors that get a gradient, at 8 bytes a number: the sums over the chunks.
        native: working memory of bptt's native core.
        peak: bytes of torch's allocator at the highest for a chunk of any length.
        lean: all this where bptt's layers keep their states only (`lean_tape`); None where that takes no less.
        on_cpu: whether the tensors come from the C library's memory.
        uses_random: whether the forward draws from torch's generators.
        with_tape: whether a forward without a graph differs in some bit from one with it.
        leaves: the tensors that get gradients.
        adding: bytes of the gradients of a chunk, while they are added to the sums.
        adding_alone: the same and the sums, where there is one chunk: these come as the gradients go.
    """

    state_bytes: int
    parameter_bytes: int
    native: NativeWork
    peak: Peak
    on_cpu: bool
    uses_random: bool
    with_tape: bool
    leaves: tuple[Tensor, ...]
    adding: int = 0
    adding_alone: int = 0
    lean: "Measured | None" = None

    @property
    def fixed_bytes(self) -> int:
        """What is needed with any plan of more than one chunk: the sums of the gradients, four states in use."""
        return self.parameter_bytes + 4 * self.state_bytes

    def peak_of_chunk(self, steps: int) -> int:
        """While a chunk of so many steps goes forward and back, and its gradients are added to the sums."""
        return max(self.peak.at(steps), self.adding)

    def peak_alone(self, steps: int) -> int:
        """The same for the only chunk: until it has gone back there are no sums, and no gradients of a later one."""
        return self.state_bytes + max(self.peak.at(steps), self.state_bytes + self.adding_alone)


def measure(chunk: Chunk, budget: float) -> Measured:
    """Try the model out on the first steps, and measure it on longer and longer pieces, within the budget.

    Nothing changes: buffers and random generators are put back.

    Raises:
        ValueError: the model cannot be run chunk by chunk, or the loss is not a sum over the steps.
        TypeError: the state is not made of tensors.
        RuntimeError: the model is random in a way that cannot be repeated.
    """
    probed = Replay(chunk, min(_PROBED, chunk.steps))
    generators = Generators(probed.device)
    before = generators.state()
    try:
        with buffers_kept(chunk.model):
            refuse_bidirectional(chunk.model)
            _refuse_batch_statistics(chunk.model)
            leaves = probed.find_leaves()
            if not (leaves or any(map(wants_gradient, tree_leaves(chunk.state)))):
                raise ValueError(NO_GRAPH)
            uses_random = not same(before, generators.state())
            state, with_tape = _try(probed, generators, before, chunk.model)
            _refuse_other_losses(probed, generators, before)
            _refuse_lookahead(probed, generators)
            peak = _peak(replace(chunk, state=state), leaves, budget)
            lean_peak = _lean_peak(replace(chunk, state=state), leaves, budget, peak)
    finally:
        generators.set(before)
    of_state = sum(t.nbytes for t in tree_leaves(state) if isinstance(t, Tensor))
    of_generators = sum(t.nbytes for t in before) if uses_random else 0
    native = NativeWork.of(chunk.model, state)
    on_cpu = all(leaf.device.type == "cpu" for leaf in leaves)
    full = Measured(
        of_state + of_generators, sum(map(_wide_bytes, leaves)), native, peak, on_cpu, uses_random, with_tape, tuple(leaves),
        *_while_added(leaves),
    )  # fmt: skip
    if lean_peak is None:
        return full
    return replace(full, lean=replace(full, peak=lean_peak, native=NativeWork.of(chunk.model, state, lean=True)))


def _try(probed: Replay, generators: Generators, before: Any, model: Callable[..., Any]) -> tuple[Any, bool]:
    """The state after the first steps, and whether a forward without a graph differs from one with it."""

    def state_after(with_tape: bool) -> Any:
        generators.set(before)
        with buffers_kept(model):
            return replace(probed, with_tape=with_tape).advance(0, owned(probed.whole.state))

    plain, taped = state_after(False), state_after(True)
    if not same(plain, state_after(False)) or not same(taped, state_after(True)):
        raise RuntimeError(RANDOM)
    return plain, not same(plain, taped)


def refuse_bidirectional(model: Callable[..., Any]) -> None:
    """Raises ValueError for a layer that also runs backward in time."""
    for name, module in model.named_modules() if isinstance(model, torch.nn.Module) else ():
        if getattr(module, "bidirectional", False) is True:
            raise ValueError(
                f"layer {name or type(module).__name__!r} is bidirectional: its state at a step depends on the steps after "
                "it, so it cannot be run chunk by chunk from a state kept before; use a layer of one direction, or Exact()"
            )


def _refuse_batch_statistics(model: Callable[..., Any]) -> None:
    """Raises ValueError for a layer whose means over the batch are over all steps too."""
    for name, module in model.named_modules() if isinstance(model, torch.nn.Module) else ():
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
            raise ValueError(
                f"layer {name!r} is a {type(module).__name__} that takes its means over all steps it is given, so it cannot "
                "be run chunk by chunk; put it into evaluation (eval()), use LayerNorm, or Exact()"
            )


def _refuse_other_losses(probed: Replay, generators: Generators, before: Any) -> None:
    """Compare the loss of some steps with the sum of the losses of their halves."""
    steps = min(probed.length, probed.whole.steps)
    if steps < 2:
        return
    generators.set(before)
    outputs, _ = probed.outputs(0, owned(probed.whole.state))
    if any(isinstance(o, Tensor) and (o.dim() == 0 or o.shape[0] != steps) for o in tree_leaves(outputs)):
        return  # not time first: there is no telling
    half = steps // 2
    ends = ((0, steps), (0, half), (half, steps))
    losses = [probed.loss(cut(outputs, a, b), a, b) for a, b in (*ends, ends[0])]
    whole, first, second, again = (loss.double() for loss in losses)
    scale = first.abs() + second.abs()
    if whole == again and (whole - first - second).abs() > _tolerance(losses[0]) * scale:
        raise ValueError(
            f"the loss of steps 0 to {steps} is {whole.item():.6g}, those of their halves {first.item():.6g} and "
            f"{second.item():.6g}: it is not a sum over the steps; write the sum of the losses L(t), and where a mean is "
            "wanted, divide it by a number fixed beforehand: loss = lambda z, y: ((z - y) ** 2).sum() / T"
        )


def _refuse_lookahead(probed: Replay, generators: Generators) -> None:
    """Compare the outputs of some steps in one piece with those in two.

    If the model draws random numbers, it is tried in evaluation, without dropout; if it draws them even so, there is no
    telling.
    """
    before = generators.state()
    for mode in (nullcontext(), evaluating(probed.whole.model)):
        with mode:
            differs = _first_difference(probed)
        if same(before, generators.state()):
            break
        generators.set(before)
    else:
        return
    if differs:
        raise ValueError(
            f"the model's {differs} when these are run as two halves, the second from the "
            "state after the first: it looks ahead (as bidirectional layers do), or the state it returns is not all "
            "that later steps depend on; Checkpointed goes chunk by chunk, so use Exact(), or complete the state"
        )


def _first_difference(probed: Replay) -> str | None:
    """Which of the outputs or states over some steps differs from that of two halves, if any."""
    steps = min(probed.length, probed.whole.steps)
    if steps < 2:
        return None
    halves = replace(probed, length=steps // 2, whole=_first_steps(probed.whole, 2 * (steps // 2)))
    whole = replace(halves, length=halves.whole.steps)
    start = owned(halves.whole.state)
    outputs, after = whole.outputs(0, start)
    first, between = halves.outputs(0, start)
    second, end = halves.outputs(1, between)
    for name, one, two in (
        ("outputs", cut(outputs, 0, halves.length), first),
        ("outputs", cut(outputs, halves.length, whole.length), second),
        ("state", after, end),
    ):
        if not _near(one, two):
            return f"{name} over {whole.length} steps differ"
    return None


def _first_steps(chunk: Chunk, steps: int) -> Chunk:
    reset = None if chunk.reset is None else cut(chunk.reset, 0, steps)
    return replace(chunk, x=cut(chunk.x, 0, steps), y=cut(chunk.y, 0, steps), reset=reset)


def _near(one: Any, two: Any) -> bool:
    pairs = zip(map(_numbers, tree_leaves(one)), map(_numbers, tree_leaves(two)), strict=False)
    return all(_close(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor))


def _numbers(leaf: Any) -> Any:
    return leaf.data if isinstance(leaf, PackedSteps) else leaf


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    return not bool((a - b).norm() > 10 * _tolerance(a) * (a.norm() + b.norm()))


def _tolerance(value: Tensor) -> float:
    """A part in a thousand, and more for the short formats: far above rounding, far below what a mean would do."""
    return 0.05 if value.dtype in (torch.float16, torch.bfloat16) else 1e-3


# Bytes ---------------------------------------------------------------------------------------------------------------


def _peak(chunk: Chunk, leaves: list[Tensor], budget: float, *, lean: bool = False) -> Peak:
    """The peak of a chunk of any length, from short ones."""
    d_after = [torch.ones_like(s) if is_number(s) else None for s in tree_leaves(chunk.state)]

    def levels(length: int) -> list[int]:
        replay = Replay(_first_steps(chunk, length), length, leaves, lean=lean)
        return levels_of(partial(replay.reverse, 0, chunk.state, d_after), replay.device)

    steps = chunk.steps
    peaks = {n: max(levels(n)) for n in (1, 2) if n <= steps}
    if steps == 1:
        return Peak(((float(peaks[1]), 0.0),))
    lengths = [min(_PROBED, steps // 2), min(2 * _PROBED, steps)]
    if 64 * (peaks[2] - peaks[1]) < budget:
        seen = [levels(length) for length in lengths]
        if len(seen[0]) == len(seen[1]) > 1:
            return Peak.through(lengths, seen)
        peaks |= {n: max(s) for n, s in zip(lengths, seen, strict=False)}
    return _peak_of_others(peaks, levels, steps, budget)


def _wide_bytes(p: Tensor) -> int:
    return (16 if p.is_complex() else 8) * p.numel()


def _while_added(leaves: list[Tensor]) -> tuple[int, int]:
    """Bytes while gradients are added to sums that are there, and to sums that are made on the way.

    Gradients go one after the other, and a piece of them is alive in the wide format as well.
    """
    gradients = sum(p.nbytes for p in leaves)
    pieces = [0 if p.nbytes == _wide_bytes(p) else min(_wide_bytes(p), 8 * ADDED) for p in leaves]
    together, sums, left = gradients, 0, gradients
    for p, piece in zip(leaves, pieces, strict=True):
        sums += _wide_bytes(p)
        together = max(together, sums + left + piece)
        left -= p.nbytes
    together = max(together, gradients + copied_bytes(leaves))  # while they are given to autograd
    return gradients + max(pieces, default=0), together


def _lean_peak(chunk: Chunk, leaves: list[Tensor], budget: float, peak: Peak) -> Peak | None:
    """The peak with a lean tape, if bptt's layers are there and it is lower."""
    modules = chunk.model.modules() if isinstance(chunk.model, torch.nn.Module) else ()
    if not any(hasattr(module, "layer_weights") for module in modules):
        return None
    lean = _peak(chunk, leaves, budget, lean=True)
    return lean if lean.step_bytes < peak.step_bytes else None


def _peak_of_others(peaks: dict[int, int], levels: Callable[[int], list[int]], steps: int, budget: float) -> Peak:
    """The line through the peaks of the two longest chunks that may be tried, within the budget and some time."""
    length = 2 * max(peaks)
    while length <= min(steps, max(_LOOPS, steps // _SHARE)) and 2 * max(peaks.values()) <= budget:
        peaks[length] = max(peaks[1], *levels(length))
        length *= 2
    m, n = sorted(peaks)[-2:]
    slope = (peaks[n] - peaks[m]) / (n - m)
    if 2 * slope * n < peaks[n]:  # the tape is hidden behind the weights' gradients yet: no more than in proportion
        slope = peaks[n] / n
    return Peak(((peaks[n] - slope * n, slope),), tuple(sorted(peaks.items())))


def levels_of(run: Callable[[], Any], device: torch.device | None) -> list[int]:
    """Bytes that torch's allocator has handed out, above those before `run`, each time it hands out or gets back a block.

    Where that is not recorded, the highest alone.
    """
    if device is not None and device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return [int(torch.cuda.max_memory_allocated(device) - before)]
    if torch._C._autograd._profiler_enabled():  # the user's own: there can be one
        return [_saved_bytes(run)]
    return _recorded(run)


def _recorded(run: Callable[[], Any]) -> list[int]:
    from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig

    config = ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig())
    collects = gc.isenabled()
    gc.disable()  # what others left would be freed at any time
    torch._C._autograd._enable_profiler_legacy(config)
    try:
        run()
    finally:
        records: Any = torch._C._autograd._disable_profiler_legacy()
        if collects:
            gc.enable()
    events = (event for thread in records for event in thread)
    sizes = (event.cpu_memory_usage() for event in events if event.kind() == "memory_alloc")
    return list(accumulate(sizes, initial=0))


def _saved_bytes(run: Callable[[], Any]) -> int:
    """An estimate from what autograd saves: once for the tape, once for the gradients that go through it."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return 2 * sum(storages.values())
