"""Truncated backpropagation through time: every k1 steps, back through k2 steps."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bptt.gradient.base import Chunk, Past, Result, Strategy, TruncationLoss, detach, in_memory, join, time_slice, total
from bptt.gradient.collect import Collected, gradients
from bptt.gradient.inputs.packed import PackedSteps
from bptt.gradient.parallel import run_in_pieces
from bptt.torch_private import tree_flatten


@dataclass(frozen=True)
class Truncated(Strategy):
    """Every k1 steps, the losses of these k1 steps are sent back through the last k2 steps (k2 = k1 if not given).

    With block ends τ = k1, 2·k1, …, T (the last block may be shorter), the result is (docs/equations.md, eq. (22))

        Σ_τ Σ_{t in the block of τ} Σ_{k = τ-k2+1 .. t}  term(t, k)  of eq. (10):

    every loss counts once, and the state before step τ-k2+1 is held constant. If k2 < k1, the losses of a block that lie
    before its window of k2 steps yield no gradient; their values are still part of the loss.

    How: each window is run again from the state kept at its start. So it may reach back across calls (pass the previous
    `Result` as the state) although an optimizer step came between; a recipe that keeps the old graphs would meet
    weights that have changed. Costs k2/k1 times the forward and backward of k2 = k1, and the memory of one window.
    Across calls the window reaches back k2-k1 steps, so let the calls be at least k1 steps long.

    With `measure`, the result's `lost` estimates what is cut off: the losses of the call's last block are sent back once
    more through k2 and through 2·k2 steps (or as many as the call and the past have), and the two gradients compared. That
    says nothing of what lies further back, and costs up to three windows a call. The exact figures: `flow.truncation(k)`.

    The windows' gradients are added up aside (float32 ones in groups, and many groups in float64), and given to autograd
    once, at the end. If the state has another batch than x, the model says so, also where k2 > k1.

    Raises ValueError unless k1 ≥ 1 and k2 ≥ 1, in steps.
    Source: R. Williams, J. Peng 1990, BPTT(h; h') with h = k2, h' = k1; I. Sutskever 2013, section 2.8.6.
    """

    k1: int
    k2: int | None = None
    measure: bool = field(default=False, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        for name, value in (("k1", self.k1), ("k2", self.window)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"Truncated: {name} is {value!r}, wanted a whole number of steps, at least 1")

    @property
    def window(self) -> int:
        """k2, in steps."""
        return self.k1 if self.k2 is None else self.k2

    def backward(self, chunk: Chunk) -> Result:
        """One forward and one backward for each block of k1 steps."""
        with run_in_pieces(self, chunk.model, chunk.loss):
            return self._backward(chunk, Collected())

    def _backward(self, chunk: Chunk, gradient: Collected) -> Result:
        line = _Line.of(chunk, gradient)
        at, state = 0, line.chunk.state  # the state before step `at`, where the next window starts
        losses = []
        starts: deque[tuple[int, Any]] = deque()  # of windows, with the state there: as far back as 2 k2 steps
        for begin, end in line.blocks(self.k1):
            start = max(0, end - self.window)
            if at < start:  # steps that no window covers
                state, loss = line.without_gradient(at, start, begin, state)
                losses += [] if loss is None else [loss]
            next_start = (
                min(end + self.k1, line.steps) - self.window if end < line.steps else end + self.k1 - self.window
            )
            at = min(max(start, next_start), end)
            starts.append((start, state))
            while len(starts) > 1 and starts[1][0] <= end - 2 * self.window:
                starts.popleft()
            state, after, loss = line.window(start, at, end, begin, state)
            losses.append(loss)
        past = line.past(at, state) if at < line.steps else None
        lost = line.compare_windows(starts[0], starts[-1], begin) if self.measure else None
        gradient.give(chunk.model, chunk.loss)
        return Result(torch.stack(losses).sum(), after, past, lost)


@dataclass(frozen=True)
class _Line:
    """The previous call's last steps and this call's chunk as one sequence, over which the windows run.

    Attributes:
        chunk: all these steps; its y belongs to this call's steps alone.
        offset: the step at which this call begins.
        gradient: where the windows' gradients are collected.
    """

    chunk: Chunk
    offset: int
    gradient: Collected

    @staticmethod
    def of(chunk: Chunk, gradient: Collected) -> "_Line":
        line = _Line._joined(chunk, gradient)
        x, y, state = (gradient.stand_in(tree) for tree in (line.chunk.x, chunk.y, line.chunk.state))
        return replace(line, chunk=replace(line.chunk, x=x, y=y, state=state))

    @staticmethod
    def _joined(chunk: Chunk, gradient: Collected) -> "_Line":
        past, reset = chunk.past, chunk.reset
        if not isinstance(past, Past) or isinstance(reset, PackedSteps):  # none, or another strategy's
            return _Line(chunk, 0, gradient)
        chunk = replace(chunk, x=in_memory(chunk.x))
        _refuse_other_steps(past, chunk)
        x = join(past.x, chunk.x)
        offset = replace(chunk, x=past.x).steps
        reset = _join_resets(past.reset, reset, offset, chunk.steps)
        return _Line(replace(chunk, x=x, state=past.state, reset=reset), offset, gradient)

    @property
    def steps(self) -> int:
        return self.chunk.steps

    def blocks(self, k1: int) -> Iterator[tuple[int, int]]:
        for begin in range(self.offset, self.steps, k1):
            yield begin, min(begin + k1, self.steps)

    def past(self, start: int, state: Any) -> Past | None:
        reset = self.chunk.reset
        if isinstance(self.chunk.x, PackedSteps) or isinstance(reset, PackedSteps):
            return None  # sequences that have ended do not go on
        return Past(
            detach(time_slice(self.chunk.x, start, self.steps)),
            detach(state),
            None if reset is None else reset[start:].clone(),
        )

    def without_gradient(self, start: int, stop: int, begin: int, state: Any) -> tuple[Any, Tensor | None]:
        """The state before step `stop`, and the value of the losses in [max(start, begin), stop), None if it is empty."""
        with torch.no_grad():
            outputs, state = self._forward(start, stop, state)
            first = min(max(start, begin), stop)  # behind the past, which has no losses
            if first == stop:
                return state, None
            loss = self.chunk.loss(time_slice(outputs, first - start, stop - start), self._targets(first, stop))
        return state, loss.detach().reshape(())

    def window(self, start: int, split: int, end: int, begin: int, state: Any) -> tuple[Any, Any, Tensor]:
        """Run [start, end) and send the losses of [max(start, begin), end) back.

        Returns the states at `split` and at `end`, and the loss.

        Two calls of the model, so that the state at `split`, where the next window starts, is seen on the way.
        """
        first = max(start, begin)
        pieces, state_at_split = [], state
        for a, b in ((start, split), (split, end)):
            if a < b:
                outputs, state = self._forward(a, b, state)
                if first < b:
                    pieces.append(outputs if first <= a else time_slice(outputs, first - a, b - a))
            if b == split:
                state_at_split = state
        outputs = pieces[0] if len(pieces) == 1 else join(*pieces)
        loss = total(self.chunk.loss(outputs, self._targets(first, end)))
        self.gradient.back(loss)
        return detach(state_at_split), detach(state), loss.detach()

    def compare_windows(self, longer: tuple[int, Any], shorter: tuple[int, Any], begin: int) -> TruncationLoss:
        """Compare the gradients of the losses from step `begin` on through two windows, each (first step, state there)."""
        if not isinstance(self.chunk.model, nn.Module):
            raise TypeError(f"measure=True needs a torch.nn.Module, the model is a {type(self.chunk.model).__name__}")
        parameters = [p for p in self.chunk.model.parameters() if p.requires_grad]
        found = []
        for start, state in (longer, shorter):
            first = max(start, begin)
            outputs, _ = self._forward(start, self.steps, state)
            loss = total(
                self.chunk.loss(
                    time_slice(outputs, first - start, self.steps - start), self._targets(first, self.steps)
                )
            )
            grads = zip(gradients([loss], parameters), parameters, strict=True)
            found.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten().double() for g, p in grads]))
        whole, part = found
        if not bool(whole.any()):
            return TruncationLoss(0.0, 1.0, self.steps - longer[0])
        cosine = torch.nn.functional.cosine_similarity(whole, part, dim=0)
        return TruncationLoss(float((whole - part).norm() / whole.norm()), float(cosine), self.steps - longer[0])

    def _forward(self, start: int, stop: int, state: Any) -> tuple[Any, Any]:
        reset = self.chunk.reset
        flags = None if reset is None else time_slice(reset, start, stop)
        return self.chunk.forward(time_slice(self.chunk.x, start, stop), state, flags)

    def _targets(self, start: int, stop: int) -> Any:
        return time_slice(self.chunk.y, start - self.offset, stop - self.offset)


def _join_resets(past: Tensor | None, reset: Tensor | None, n_past: int, n: int) -> Tensor | None:
    """The resets over the past and the chunk; where one of them has none, nothing is reset."""
    if past is None and reset is None:
        return None
    if past is None:
        assert reset is not None
        past = reset.new_zeros(n_past, *reset.shape[1:])
    if reset is None:
        reset = past.new_zeros(n, *past.shape[1:])
    return torch.cat([past, reset])


def _refuse_other_steps(past: Past, chunk: Chunk) -> None:
    """Refuse a past whose steps have another form than the chunk's.

    Raises the model's own error where the state does not fit x (a smaller last batch, say), else ValueError.
    """
    ours, theirs = _step_shapes(chunk), _step_shapes(replace(chunk, x=past.x, reset=past.reset))
    if ours == theirs or (ours[:2] == theirs[:2] and None in (ours[2], theirs[2])):
        return
    with torch.no_grad():
        chunk.forward(
            time_slice(chunk.x, 0, 1), chunk.state, None if chunk.reset is None else time_slice(chunk.reset, 0, 1)
        )
    raise ValueError(
        f"the last k2 steps reach back into the previous call, whose x (and reset) had steps of {theirs[1:]}, this call's "
        f"has {ours[1:]}: pass the `.state` of its Result, so that the window begins with this call"
    )


def _step_shapes(chunk: Chunk) -> tuple[Any, ...]:
    """The structure of x, the shapes of one step of its tensors, and that of reset."""
    leaves, structure = tree_flatten(chunk.x)
    sizes = [tuple(leaf.shape[1:]) for leaf in leaves if isinstance(leaf, Tensor)]
    return structure, sizes, None if chunk.reset is None else tuple(chunk.reset.shape[1:])  # type: ignore[union-attr]
