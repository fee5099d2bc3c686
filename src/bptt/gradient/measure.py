"""What a model needs, measured on the first steps of the sequence; and whether it can be run chunk by chunk at all.

Bytes are those that torch's allocator hands out, at their highest, so they do not depend on what ran before. On the CPU
they are recorded by torch's memory profiler; the working memory of bptt's native core is outside it, and is added from the
sizes.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from bptt.cells import GRU
from bptt.gradient.base import Chunk, cut
from bptt.gradient.replay import Generators, Replay, buffers_kept, is_number, owned, same

_PROBED = 16  # steps on which the model is tried out
_SHARE = 32  # the probes take about a share 1/32 of the whole time at most
_BLOCK = 1 << 20  # bytes of a block of steps in the native core's backward (csrc/loops.h, kCache)
RANDOM = (
    "the same chunk, run again from the same state and with the same random numbers of torch, gave another result: the "
    "model has randomness outside torch's generators (numpy, random, the time), or keeps something from call to call that "
    "belongs into its state; Checkpointed runs each chunk several times: use torch's random numbers, or strategy Exact()"
)


@dataclass(frozen=True)
class NativeWork:
    """Working memory of the native core for the widest of bptt's layers (csrc/loops.h): it is not torch's allocator's.

    Attributes:
        packed: bytes of the weights as its products want them.
        step: bytes of the gradients of one step's gates.
        most: bytes of the block of steps whose gradients it holds.
    """

    packed: int = 0
    step: int = 0
    most: int = 0

    @staticmethod
    def of(model: Callable[..., Any], state: Any) -> "NativeWork":
        """Nothing for other layers than bptt's."""
        work = NativeWork()
        modules = model.modules() if isinstance(model, torch.nn.Module) else ()
        layers: list[Any] = [module for module in modules if hasattr(module, "layer_weights")]
        for layer in layers:
            weights = layer.layer_weights(0, 0)
            gates = weights["weight_hh"].shape[0]
            rows = max((s.numel() for s in tree_leaves(state) if isinstance(s, Tensor)), default=0) // layer.hidden_size
            blocks = 2 if isinstance(layer.cell, GRU) else 1  # the candidate's zh is apart
            step = blocks * gates * max(1, rows) * weights["weight_hh"].element_size()
            packed = max(work.packed, sum(w.nbytes for w in weights.values()))
            work = NativeWork(packed, max(work.step, step), max(work.most, step, blocks * _BLOCK))
        return work

    def bytes(self, steps: int) -> int:
        """For a chunk of so many steps."""
        return self.packed + min(self.step * steps, self.most)


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        state_bytes: one state, and the random generators if the model uses them: what a snapshot takes.
        parameter_bytes: Σ over the tensors that get a gradient, at 8 bytes a number: the sums over the chunks.
        native: working memory of bptt's native core.
        lengths, peaks: steps of a chunk, and bytes at the highest while it goes forward and back.
        uses_random: whether the forward draws from torch's generators.
        with_tape: whether a forward without a graph differs in some bit from one with it.
        leaves: the tensors that get gradients.
    """

    state_bytes: int
    parameter_bytes: int
    native: NativeWork
    lengths: tuple[int, ...]
    peaks: tuple[int, ...]
    uses_random: bool
    with_tape: bool
    leaves: tuple[Tensor, ...]

    @property
    def tape_bytes(self) -> float:
        """Bytes that one more step adds to a chunk."""
        if len(self.lengths) == 1:
            return self.peaks[0] / self.lengths[0]
        return max(1.0, (self.peaks[-1] - self.peaks[-2]) / (self.lengths[-1] - self.lengths[-2]))

    def peak(self, steps: int) -> int:
        """Bytes at the highest for a chunk of so many steps."""
        return self.native.bytes(steps) + self._torch_peak(steps)

    def _torch_peak(self, steps: int) -> int:
        """Between and beyond the lengths measured, a straight line."""
        i = bisect_left(self.lengths, steps)
        if i == len(self.lengths):
            return int(self.peaks[-1] + (steps - self.lengths[-1]) * self.tape_bytes)
        if i == 0 or self.lengths[i] == steps:
            return self.peaks[i]
        share = (steps - self.lengths[i - 1]) / (self.lengths[i] - self.lengths[i - 1])
        return int(self.peaks[i - 1] + share * (self.peaks[i] - self.peaks[i - 1]))

    @property
    def fixed_bytes(self) -> int:
        """What is needed whatever the plan: the sums of the gradients, four states in use."""
        return self.parameter_bytes + 4 * self.state_bytes


def measure(chunk: Chunk, budget: float) -> Measured:
    """Try the model out on the first steps, and measure it on longer and longer pieces, within the budget.

    Nothing changes: buffers and random generators are put back.

    Raises:
        ValueError: the model cannot be run chunk by chunk, or the loss is not a sum over the steps.
        TypeError: the state is not made of tensors.
        RuntimeError: the model is random in a way that cannot be repeated.
    """
    steps = chunk.steps
    probed = Replay(chunk, min(_PROBED, steps))
    generators = Generators(probed.device)
    before = generators.state()
    try:
        with buffers_kept(chunk.model):
            refuse_bidirectional(chunk.model)
            leaves = probed.find_leaves()
            uses_random = not same(before, generators.state())
            state, with_tape = _try(probed, generators, before, chunk.model)
            _refuse_other_losses(probed, generators, before)
            if not uses_random:
                _refuse_lookahead(probed, state)
            lengths, peaks = _peaks(replace(chunk, state=state), leaves, steps, budget)
    finally:
        generators.set(before)
    of_state = sum(t.nbytes for t in tree_leaves(state) if isinstance(t, Tensor))
    of_generators = sum(t.nbytes for t in before) if uses_random else 0
    sums = sum(16 * p.numel() if p.is_complex() else 8 * p.numel() for p in leaves)
    native = NativeWork.of(chunk.model, state)
    return Measured(of_state + of_generators, sums, native, lengths, peaks, uses_random, with_tape, tuple(leaves))


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


def _refuse_lookahead(probed: Replay, after: Any) -> None:
    """Compare the outputs of some steps in one piece with those in two; only a model that draws no random numbers."""
    steps = min(probed.length, probed.whole.steps)
    if steps < 2:
        return
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
            raise ValueError(
                f"the model's {name} over {whole.length} steps differ when these are run as two halves, the second from the "
                "state after the first: it looks ahead (as bidirectional layers do), or the state it returns is not all "
                "that later steps depend on; Checkpointed goes chunk by chunk, so use Exact(), or complete the state"
            )


def _first_steps(chunk: Chunk, steps: int) -> Chunk:
    reset = None if chunk.reset is None else cut(chunk.reset, 0, steps)
    return replace(chunk, x=cut(chunk.x, 0, steps), y=cut(chunk.y, 0, steps), reset=reset)


def _near(one: Any, two: Any) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(two), strict=False)
    return all(_close(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor))


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    return not bool((a - b).norm() > 10 * _tolerance(a) * (a.norm() + b.norm()))


def _tolerance(value: Tensor) -> float:
    """A part in a thousand, and more for the short formats: far above rounding, far below what a mean would do."""
    return 0.05 if value.dtype in (torch.float16, torch.bfloat16) else 1e-3


# Bytes ---------------------------------------------------------------------------------------------------------------


def _peaks(chunk: Chunk, leaves: list[Tensor], steps: int, budget: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lengths and the peaks of their chunks, from one step on, as far as time and budget go."""
    state = chunk.state
    d_after = [torch.ones_like(s) if is_number(s) else None for s in tree_leaves(state)]
    lengths: list[int] = []
    peaks: list[int] = []
    for length in _lengths(steps):
        if len(lengths) > 1:
            slope = (peaks[-1] - peaks[-2]) / (lengths[-1] - lengths[-2])
            if peaks[-1] + slope * (length - lengths[-1]) > budget:
                break
        replay = Replay(_first_steps(chunk, length), length, leaves)
        held = tree_map(lambda leaf: leaf, state)
        lengths.append(length)
        peaks.append(peak_of(lambda r=replay, s=held: r.reverse(0, s, d_after), replay.device))  # type: ignore[misc]
    return tuple(lengths), tuple(peaks)


def _lengths(steps: int) -> list[int]:
    lengths, length = [n for n in (1, 2, 4) if n <= steps], _PROBED
    while length <= min(steps, max(_PROBED, steps // _SHARE)):
        lengths.append(length)
        length *= 4
    return lengths


def peak_of(run: Callable[[], Any], device: torch.device | None) -> int:
    """Bytes that torch's allocator has handed out at the highest while `run` runs, above those before."""
    if device is not None and device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return int(torch.cuda.max_memory_allocated(device) - before)
    if torch._C._autograd._profiler_enabled():  # the user's own: there can be one
        return _saved_bytes(run)
    return _recorded_bytes(run)


def _recorded_bytes(run: Callable[[], Any]) -> int:
    from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig

    config = ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig())
    torch._C._autograd._enable_profiler_legacy(config)
    try:
        run()
    finally:
        records: Any = torch._C._autograd._disable_profiler_legacy()
    now = highest = 0
    for thread in records:
        for event in thread:
            if event.kind() == "memory_alloc":
                now += event.cpu_memory_usage()
                highest = max(highest, now)
    return highest


def _saved_bytes(run: Callable[[], Any]) -> int:
    """An estimate from what autograd saves: once for the tape, once for the gradients that go through it."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return 2 * sum(storages.values())
