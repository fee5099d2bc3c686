"""Whether a model and its loss can be run chunk by chunk, and again with the same result: tried on the first steps."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bptt.gradient.base import first_steps, time_slice
from bptt.gradient.checkpointing.replay import (
    Generators,
    Replay,
    buffers_restored,
    detached_copy,
    equal_states,
    evaluation_mode,
)
from bptt.gradient.inputs.packed import PackedSteps
from bptt.torch_private import BatchNorm, tree_leaves

RANDOM = (
    "the same chunk, run again from the same state and with the same random numbers of torch, gave another result: the "
    "model has randomness outside torch's generators (numpy, random, the time), or keeps something from call to call that "
    "belongs into its state; Checkpointed runs each chunk several times: use torch's random numbers, or strategy Exact()"
)


def run_twice(probed: Replay, generators: Generators, before: Any, model: Callable[..., Any]) -> tuple[Any, bool]:
    """Return the state after the first steps, and whether a forward without a graph differs from one with it.

    before: the state of the random generators from which the steps are run.
    Raises RuntimeError if a second run gives another state.
    """

    def state_after(with_tape: bool) -> Any:
        generators.set(before)
        with buffers_restored(model):
            return replace(probed, with_tape=with_tape).advance(0, detached_copy(probed.whole.state))

    plain, taped = state_after(False), state_after(True)
    if not equal_states(plain, state_after(False)) or not equal_states(taped, state_after(True)):
        raise RuntimeError(RANDOM)
    return plain, not equal_states(plain, taped)


def refuse_bidirectional(model: Callable[..., Any]) -> None:
    """Raise ValueError if the model has a layer that also runs backward in time."""
    for name, module in model.named_modules() if isinstance(model, torch.nn.Module) else ():
        if getattr(module, "bidirectional", False) is True:
            raise ValueError(
                f"layer {name or type(module).__name__!r} is bidirectional: its state at a step depends on the steps after "
                "it, so it cannot be run chunk by chunk from a state kept before; use a layer of one direction, or Exact()"
            )


def refuse_batch_statistics(model: Callable[..., Any]) -> None:
    """Raise ValueError if the model has a layer whose means over the batch are over all steps too."""
    for name, module in model.named_modules() if isinstance(model, torch.nn.Module) else ():
        if isinstance(module, BatchNorm) and (module.training or not module.track_running_stats):
            raise ValueError(
                f"layer {name!r} is a {type(module).__name__} that takes its means over all steps it is given, so it cannot "
                "be run chunk by chunk; put it into evaluation (eval()), use LayerNorm, or Exact()"
            )


def refuse_other_losses(probed: Replay, generators: Generators, before: Any) -> None:
    """Raise ValueError if the loss of some steps is not the sum of the losses of their halves.

    before: the state of the random generators from which the steps are run.
    """
    steps = min(probed.length, probed.whole.steps)
    if steps < 2:
        return
    generators.set(before)
    outputs, _ = probed.outputs(0, detached_copy(probed.whole.state))
    if any(isinstance(o, Tensor) and (o.dim() == 0 or o.shape[0] != steps) for o in tree_leaves(outputs)):
        return  # not time first: there is no telling
    half = steps // 2
    ends = ((0, steps), (0, half), (half, steps))
    losses = [probed.loss(time_slice(outputs, a, b), a, b) for a, b in (*ends, ends[0])]
    whole, first, second, again = (loss.double() for loss in losses)
    scale = first.abs() + second.abs()
    if whole == again and (whole - first - second).abs() > _tolerance(losses[0]) * scale:
        raise ValueError(
            f"the loss of steps 0 to {steps} is {whole.item():.6g}, those of their halves {first.item():.6g} and "
            f"{second.item():.6g}: it is not a sum over the steps; write the sum of the losses L(t), and where a mean is "
            "wanted, divide it by a number fixed beforehand: loss = lambda z, y: ((z - y) ** 2).sum() / T"
        )


def refuse_lookahead(probed: Replay, generators: Generators) -> None:
    """Raise ValueError if the outputs of some steps, run in one piece, differ from those of two pieces.

    A model that draws random numbers is tried in evaluation, without dropout; if it draws them even so, it is not refused.
    """
    before = generators.state()
    for mode in (nullcontext(), evaluation_mode(probed.whole.model)):
        with mode:
            differs = _first_difference(probed)
        if equal_states(before, generators.state()):
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
    """In words, which of the outputs or states over some steps differs from that of two halves; None if none does."""
    steps = min(probed.length, probed.whole.steps)
    if steps < 2:
        return None
    halves = replace(probed, length=steps // 2, whole=first_steps(probed.whole, 2 * (steps // 2)))
    whole = replace(halves, length=halves.whole.steps)
    start = detached_copy(halves.whole.state)
    outputs, after = whole.outputs(0, start)
    first, between = halves.outputs(0, start)
    second, end = halves.outputs(1, between)
    for name, one, two in (
        ("outputs", time_slice(outputs, 0, halves.length), first),
        ("outputs", time_slice(outputs, halves.length, whole.length), second),
        ("state", after, end),
    ):
        if not _near(one, two):
            return f"{name} over {whole.length} steps differ"
    return None


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
