"""The whole gradient within a budget of memory: a few states are kept, and the steps between them are run again."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt.gradient.base import NO_GRAPH, Chunk, Loss, Result, Strategy, chunk_of, time_slice
from bptt.gradient.checkpointing.conditions import RANDOM
from bptt.gradient.checkpointing.measure import measure
from bptt.gradient.checkpointing.plan import Plan, Planner, parse_bytes
from bptt.gradient.checkpointing.replay import (
    ChunkGradients,
    Generators,
    Replay,
    copy_buffers,
    detached_copy,
    equal_states,
    restore_buffers,
)
from bptt.gradient.checkpointing.schedule import Advance, Restore, Reverse, Snapshot, schedule
from bptt.gradient.checkpointing.snapshots import STORAGES, Snapshots, open_snapshots
from bptt.gradient.checkpointing.system_memory import TRIM_EVERY, freed_at_once, trim
from bptt.gradient.collect import Collected, to_sum_format
from bptt.gradient.inputs.packed import PackedSteps
from bptt.gradient.inputs.stream import Stream
from bptt.gradient.parallel import run_in_pieces
from bptt.torch_private import tree_leaves


@dataclass(frozen=True)
class CheckpointedResult(Result):
    """What `bptt.backward` with `Checkpointed` returns.

    Attributes:
        plan: how the budget was spent.
        extra_steps: forward steps that were run without a tape, exactly as many as `plan.extra_steps`.
    """

    plan: Plan | None = None
    extra_steps: int = 0


@dataclass(frozen=True)
class Checkpointed(Strategy):
    """∂L/∂θ = Σ_t Σ_{k≤t} of eq. (10) (docs/equations.md), as `Exact`, for sequences of any length T within `memory` bytes.

    The sequence is divided into n = ⌈T/c⌉ chunks of c steps. A first pass keeps some of the states between them. Then the
    chunks are taped and reversed one at a time, from the last to the first, each from the state before it, which is found
    again from the nearest one kept. With s snapshots that takes c·(r n − C(s+r, s+1)) extra forward steps, r the smallest
    number with C(s+r, s) ≥ n, and no order takes fewer. c and s are chosen for the least time within the budget, from what
    the first steps of the sequence show of the model: `plan` tells. Outputs and losses exist for a chunk at a time only, so
    the loss must be a sum over the steps.

    The budget is for all but the parameters, their gradients of before, the inputs, and the interpreter: snapshots, tape,
    the gradients of a chunk, and their sums over the chunks (float64). Dropout and other random numbers of torch are
    repeated exactly. Chunks draw them one after the other, so the masks are those of a run chunk by chunk.

    The model is called many times, and so is the loss: side effects (counters, logs) happen as often. Buffers end as after
    one pass. If an error is raised, or the run is interrupted, `.grad` (added to at the end), the buffers and torch's random
    generators are as before.

    Args:
        memory: bytes, as a number or a text: "256MB", "1GiB", "24e6".
        storage: where the snapshots are: "memory" (the device's), "host" (the CPU's), "disk" (files in TMPDIR, which do not
            count for the budget; a run that was killed leaves them, and the next one removes them).

    Raises:
        ValueError: the size is unreadable; the budget is too small (the message says the least one); the layer is
            bidirectional, looks ahead, or takes means over all steps (BatchNorm in training); the loss is not a sum over the
            steps; an input cannot be restarted.
        TypeError: the state is not made of tensors.
        RuntimeError: a chunk that was run again gave another result: there is randomness outside torch's generators.
        OSError: the disk is full.

    Source: A. Griewank, A. Walther, ACM TOMS 26 (2000), for the order (`bptt.gradient.checkpointing.schedule`, eq. (25));
    A. Gruslys et al. 2016 for the use in recurrent networks.
    """

    memory: int | float | str
    storage: str = "memory"

    def __post_init__(self) -> None:
        parse_bytes(self.memory)
        if self.storage not in STORAGES:
            raise ValueError(f"storage {self.storage!r} is unknown: give {', '.join(STORAGES)}")

    def plan(
        self,
        model: Any,
        x: Any,
        y: Any = None,
        loss: Loss | None = None,
        state: Any = None,
        *,
        reset: Tensor | PackedSequence | None = None,
    ) -> Plan:
        """Return what `backward` would do with these arguments, after running the first steps; nothing is changed.

        Without y and loss, the loss is taken to be the sum of all outputs.

        >>> print(Checkpointed("1MB").plan(torch.nn.GRU(2, 8), torch.zeros(100_000, 1, 2)).repetitions)
        1
        """
        if loss is None:
            y, loss = None, _sum
        with freed_at_once(), run_in_pieces(self, model, loss):
            return _prepared(chunk_of(model, x, y, loss, state, reset), self)[0]

    def backward(self, chunk: Chunk) -> CheckpointedResult:
        """Measure the model, plan within the budget, run the plan, and add the gradient to `.grad`."""
        _refuse_derivatives_of_inputs(chunk)
        with run_in_pieces(self, chunk.model, chunk.loss):
            with freed_at_once():
                plan, replay, uses_random = _prepared(chunk, self)
            with freed_at_once(plan.frees):
                run = _Run(replay, plan, uses_random)
                with closing(open_snapshots(self.storage, plan.snapshots)) as snapshots:
                    run.all(snapshots)
                return run.result()


def _sum(outputs: Any, _: Any) -> Tensor:
    return sum((o.float().sum() for o in tree_leaves(outputs) if isinstance(o, Tensor)), torch.zeros((), device="cpu"))


def _prepared(chunk: Chunk, strategy: Checkpointed) -> tuple[Plan, Replay, bool]:
    """The plan, what runs its chunks, and whether the model draws random numbers."""
    budget = parse_bytes(strategy.memory)
    measured = measure(chunk, budget)
    streams = [leaf for leaf in tree_leaves((chunk.x, chunk.y)) if isinstance(leaf, Stream)]
    first = [time_slice(stream, 0, 1) for stream in streams]
    a_step = float(sum(leaf.nbytes for leaf in tree_leaves(first)))
    longest = max((stream.longest for stream in streams), default=0)
    plan = Planner(measured, chunk.steps, strategy.storage, a_step, longest).plan(budget)
    for stream in streams:
        stream.keep = plan.held
    replay = Replay(chunk, plan.chunk, list(measured.leaves), measured.with_tape, plan.lean)
    return plan, replay, measured.uses_random


def _refuse_derivatives_of_inputs(chunk: Chunk) -> None:
    given = (leaf.data if isinstance(leaf, PackedSteps) else leaf for leaf in tree_leaves((chunk.x, chunk.y)))
    if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in given):
        raise ValueError(
            "x or y requires a gradient, which would be as large as itself: Checkpointed gives those of parameters and of "
            "the initial state; pass x.detach(), or use Exact()"
        )


class _Run:
    """One run of a plan. Nothing that the caller sees changes before `result`."""

    def __init__(self, replay: Replay, plan: Plan, uses_random: bool) -> None:
        self.replay, self.plan = replay, plan
        self.generators = Generators(replay.device) if uses_random else None
        self.gradient = Collected(group=1)
        self.loss: Tensor | None = None
        self.final: Any = None  # the state after the last step, with generators and buffers as they are then
        self.before = self._generators(), copy_buffers(replay.whole.model)
        self.has_graph = False
        self.extra_steps = 0
        self.given = [leaf for leaf in tree_leaves(replay.whole.state) if isinstance(leaf, Tensor)]
        self.d_state: list[Tensor | None] = []
        self._before_later: Any = None  # the state before the chunk that was reversed last

    def all(self, snapshots: Snapshots) -> None:
        """Run every action of the schedule. Raises ValueError if no loss depended on a tensor that wants a gradient.

        After an error the random generators and the buffers are as before.
        """
        with self._restored_on_error():
            self._all(snapshots)
            if not self.has_graph:
                raise ValueError(NO_GRAPH)

    @contextmanager
    def _restored_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            generators, buffers = self.before
            self._set_generators(generators)
            restore_buffers(self.replay.whole.model, buffers)
            raise

    def _all(self, snapshots: Snapshots) -> None:
        state = detached_copy(self.replay.whole.state)
        for action in schedule(self.plan.chunks, self.plan.snapshots):
            match action:
                case Snapshot(slot, _):
                    snapshots.put(slot, (state, self._generators()))
                case Restore(slot, _):
                    state, generators = snapshots.get(slot)
                    self._set_generators(generators)
                case Advance(start, stop):
                    for i in range(start, stop):
                        state = self.replay.advance(i, state)
                    self.extra_steps += (stop - start) * self.plan.chunk
                case Reverse(at):
                    self._reverse(at, state)

    def _reverse(self, i: int, state: Any) -> None:
        last = i == self.plan.chunks - 1
        state_wanted = i > 0 or any(leaf.requires_grad for leaf in self.given)
        found = self.replay.reverse(i, state, self.d_state, state_wanted)
        if last:
            self.final = found.after, self._generators(), copy_buffers(self.replay.whole.model)
        elif not equal_states(found.after, self._before_later):
            raise RuntimeError(RANDOM)
        self._before_later, self.d_state = state, found.d_state
        self._add(found)
        if not self.plan.frees and i % TRIM_EVERY == 0:
            trim()

    def _add(self, found: ChunkGradients) -> None:
        """Add a chunk's loss and gradients to the sums, in float64: over thousands of chunks, float32 would lose them."""
        self.has_graph |= found.has_graph
        loss = to_sum_format(found.loss)
        self.loss = loss if self.loss is None else self.loss + loss
        self._loss_dtype = found.loss.dtype
        for j, leaf in enumerate(self.replay.leaves):
            gradient, found.d_leaves[j] = found.d_leaves[j], None
            if gradient is not None:
                self.gradient.add(leaf, gradient.to_dense() if gradient.is_sparse else gradient)

    def _generators(self) -> Any:
        return None if self.generators is None else self.generators.state()

    def _set_generators(self, generators: Any) -> None:
        if self.generators is not None:
            self.generators.set(generators)

    def result(self) -> CheckpointedResult:
        """Hand the gradients to autograd, which adds them to `.grad`. After an error everything is as before the run."""
        state, generators, buffers = self.final
        with self._restored_on_error():
            self._set_generators(generators)
            restore_buffers(self.replay.whole.model, buffers)
            for given, gradient in zip(self.given, self.d_state, strict=False):
                if given.requires_grad:
                    self.gradient.add(given, gradient)
            self.d_state = []
            self.gradient.give(self.replay.whole.model, self.replay.whole.loss)
        assert self.loss is not None
        loss = self.loss.to(self._loss_dtype)
        return CheckpointedResult(loss, state, plan=self.plan, extra_steps=self.extra_steps)
