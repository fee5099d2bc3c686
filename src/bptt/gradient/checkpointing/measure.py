"""What a model needs to be run chunk by chunk, measured on the first steps of the sequence.

Bytes are those that torch's allocator hands out, at their highest (peak.py), and the working memory of bptt's native core,
which is outside it (native_work.py).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bptt.gradient.base import NO_GRAPH, Chunk
from bptt.gradient.checkpointing.conditions import (
    refuse_batch_statistics,
    refuse_bidirectional,
    refuse_lookahead,
    refuse_other_losses,
    run_twice,
)
from bptt.gradient.checkpointing.native_work import NativeWork
from bptt.gradient.checkpointing.peak import PROBED, Peak, measure_peak
from bptt.gradient.checkpointing.replay import Generators, Replay, buffers_restored, equal_states, wants_gradient
from bptt.gradient.collect import ADDED, restore_copy_bytes
from bptt.torch_private import tree_leaves


@dataclass(frozen=True)
class Measured:
    """What a model needs to be run chunk by chunk.

    Attributes:
        state_bytes: one state, and the random generators if the model uses them: what a snapshot takes.
        parameter_bytes: Σ over the tensors that get a gradient, at 8 bytes a number: the sums over the chunks.
        native: working memory of bptt's native core.
        peak: bytes of torch's allocator at the highest for a chunk of any length.
        lean: the measurement with a tape of bptt's layers' states only (`lean_tape`); None where that takes no less.
        on_cpu: whether the tensors come from the C library's memory.
        uses_random: whether the forward draws from torch's generators.
        with_tape: whether a forward without a graph differs in some bit from one with it.
        leaves: the tensors that get gradients.
        adding: bytes of the gradients of a chunk, while they are added to the sums.
        adding_alone: bytes of the gradients and the sums, where there is one chunk: sums are made as gradients go.
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
        """Bytes needed with any plan of more than one chunk: the sums of the gradients, and four states in use."""
        return self.parameter_bytes + 4 * self.state_bytes

    def peak_of_chunk(self, steps: int) -> int:
        """Return the bytes at the highest while one chunk of several goes forward and back and its gradients are added."""
        return max(self.peak.at(steps), self.adding)

    def peak_alone(self, steps: int) -> int:
        """Return the bytes at the highest for the only chunk: until it has gone back there are no sums."""
        return self.state_bytes + max(self.peak.at(steps), self.state_bytes + self.adding_alone)


def measure(chunk: Chunk, budget: float) -> Measured:
    """Try the model out on the first steps, and measure it on longer and longer pieces, within the budget in bytes.

    Nothing changes: buffers and random generators are restored.

    Raises:
        ValueError: the model cannot be run chunk by chunk, or the loss is not a sum over the steps.
        TypeError: the state is not made of tensors.
        RuntimeError: the model is random in a way that cannot be repeated.
    """
    probed = Replay(chunk, min(PROBED, chunk.steps))
    generators = Generators(probed.device)
    before = generators.state()
    try:
        with buffers_restored(chunk.model):
            refuse_bidirectional(chunk.model)
            refuse_batch_statistics(chunk.model)
            leaves = probed.find_leaves()
            if not (leaves or any(map(wants_gradient, tree_leaves(chunk.state)))):
                raise ValueError(NO_GRAPH)
            uses_random = not equal_states(before, generators.state())
            state, with_tape = run_twice(probed, generators, before, chunk.model)
            refuse_other_losses(probed, generators, before)
            refuse_lookahead(probed, generators)
            peak = measure_peak(replace(chunk, state=state), leaves, budget)
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


def _wide_bytes(p: Tensor) -> int:
    return (16 if p.is_complex() else 8) * p.numel()


def _while_added(leaves: list[Tensor]) -> tuple[int, int]:
    """(`Measured.adding`, `Measured.adding_alone`): bytes while gradients are added to sums, present or made on the way.

    Gradients go one after the other, and a piece of them is alive in the wide format as well.
    """
    gradients = sum(p.nbytes for p in leaves)
    pieces = [0 if p.nbytes == _wide_bytes(p) else min(_wide_bytes(p), 8 * ADDED) for p in leaves]
    together, sums, left = gradients, 0, gradients
    for p, piece in zip(leaves, pieces, strict=True):
        sums += _wide_bytes(p)
        together = max(together, sums + left + piece)
        left -= p.nbytes
    together = max(together, gradients + restore_copy_bytes(leaves))  # while they are given to autograd
    return gradients + max(pieces, default=0), together


def _lean_peak(chunk: Chunk, leaves: list[Tensor], budget: float, peak: Peak) -> Peak | None:
    """The peak with a lean tape, if the model has layers of bptt's and it is lower; else None."""
    modules = chunk.model.modules() if isinstance(chunk.model, torch.nn.Module) else ()
    if not any(hasattr(module, "layer_weights") for module in modules):
        return None
    lean = measure_peak(chunk, leaves, budget, lean=True)
    return lean if lean.step_bytes < peak.step_bytes else None
