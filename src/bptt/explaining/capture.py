"""One forward and one backward pass of the user's model: each recurrent layer's input and the gradient at its outputs.

The model stays as it was: no `.grad` is filled, no mode is changed. Dropout is off while it is looked at.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from bptt.layers import cell_of

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Sample:
    """One sample of one layer's call, without padding: T steps.

    Attributes:
        x: [T, D].
        hx: the initial state, each component [layers·directions, H or P]; None for zeros.
        reset: bool [T] or None.
        outputs, grad: h(t) of the last layer, and ∂L/∂h(t), [T, directions·(H or P)].
        ends: components of the final state, beside h of the last layer, to which a gradient came.
    """

    x: Tensor
    hx: tuple[Tensor, ...] | None
    reset: Tensor | None
    outputs: Tensor
    grad: Tensor
    ends: tuple[str, ...]


@dataclass
class Call:
    """One call of a recurrent layer, the longest of those that the model made; `calls` is their number.

    Attributes:
        grads: ∂L/∂ of the outputs, then of each component of the final state; None where the loss does not depend on it.
    """

    name: str
    layer: Any
    x: Any
    hx: tuple[Tensor, ...] | None
    reset: Any
    outputs: Any
    final: tuple[Tensor, ...]
    calls: int = 1
    grads: tuple[Tensor | None, ...] = ()

    @property
    def steps(self) -> int:
        """T, padding included."""
        return self._rows(self.outputs).shape[0]

    @property
    def batch(self) -> int:
        """B."""
        return self._rows(self.outputs).shape[1]

    @property
    def unbatched(self) -> bool:
        """Whether there is no axis for the batch."""
        return isinstance(self.outputs, Tensor) and self.outputs.dim() == 2

    @property
    def lengths(self) -> list[int]:
        """Steps of each sample."""
        if isinstance(self.outputs, PackedSequence):
            return [int(n) for n in pad_packed_sequence(self.outputs)[1]]
        return [self.steps] * self.batch

    def default_sample(self) -> int:
        """The longest sample; among equals the first to which a gradient came."""
        reached = [int(bool((self._grad(b) != 0).any())) for b in range(self.batch)]
        best = max(zip(self.lengths, reached, strict=True))
        return list(zip(self.lengths, reached, strict=True)).index(best)

    def sample(self, number: int) -> Sample:
        """One place of the batch. Raises ValueError where there is none."""
        if not 0 <= number < self.batch:
            raise ValueError(
                f"samples has {number}, the batch of {self.name} has {self.batch}: give places from 0 to {self.batch - 1}"
            )
        steps = self.lengths[number]
        hx = (
            None if self.hx is None else tuple(s.detach() if self.unbatched else s.detach()[:, number] for s in self.hx)
        )
        reset = None if self.reset is None else self._rows(self.reset, flags=True)[:steps, number]
        return Sample(
            self._rows(self.x)[:steps, number].detach(),
            hx,
            reset,
            self._rows(self.outputs)[:steps, number].detach(),
            self._grad(number),
            self._ends(number),
        )

    def _rows(self, tensor: Any, flags: bool = False) -> Tensor:
        """Time first, [T, B, ...]."""
        if isinstance(tensor, PackedSequence):
            whole = pad_packed_sequence(tensor._replace(data=tensor.data.to(torch.uint8)) if flags else tensor)[0]
            return whole.to(tensor.data.dtype)
        if self.unbatched:
            return tensor.unsqueeze(1)
        return tensor.transpose(0, 1) if self.layer.batch_first else tensor

    def _grad(self, number: int) -> Tensor:
        """∂L/∂h(t), with what came through the final h added where that state is an output: at the last step."""
        steps, given = self.lengths[number], self.grads[0]
        like = self._rows(self.outputs)[:steps, number].detach()
        if given is None:
            grad = torch.zeros_like(like)
        else:
            form = self.outputs._replace(data=given) if isinstance(self.outputs, PackedSequence) else given
            grad = self._rows(form)[:steps, number].clone()
        if self.grads[1] is not None:
            top = self._state(self.grads[1], number)[-self._directions :]
            for piece, end, step in zip(grad.chunk(self._directions, -1), top, (steps - 1, 0), strict=False):
                piece[step] += end
        return grad

    def _ends(self, number: int) -> tuple[str, ...]:
        found = []
        for component, grad in zip(cell_of(self.layer).states, self.grads[1:], strict=True):  # type: ignore[union-attr]
            if grad is None:
                continue
            ends = self._state(grad, number)
            if bool((ends[: -self._directions] if component == "h" else ends).any()):
                found.append(component)
        return tuple(found)

    def _state(self, state: Tensor, number: int) -> Tensor:
        return state if self.unbatched else state[:, number]

    @property
    def _directions(self) -> int:
        return 2 if self.layer.bidirectional else 1


def capture(model: nn.Module, x: Any, y: Any, loss: Loss, reset: Tensor | None = None) -> tuple[list[Call], Tensor]:
    """The calls of the model's recurrent layers in their order, and what `loss(model(x), y)` returned, without its graph.

    Raises ValueError where the model holds no recurrent layer, calls none, or the loss does not depend on one.
    """
    layers = [(name or type(m).__name__.lower(), m) for name, m in model.named_modules() if cell_of(m) is not None]
    if not layers:
        cells = any(isinstance(m, nn.RNNCellBase) for m in model.modules())
        hint = ", torch.nn's single cells cannot be seen" if cells else ""
        raise ValueError(
            f"{type(model).__name__} holds no recurrent layer{hint}: wanted torch.nn.RNN, GRU or LSTM, bptt's of the same "
            "names, or bptt.Recurrent"
        )
    calls: dict[int, Call] = {}
    with _looked_at(model), torch.enable_grad():
        handles = [m.register_forward_hook(_keeper(name, calls), with_kwargs=True) for name, m in layers]
        try:
            made = model(x) if reset is None else model(x, reset=reset)
        finally:
            for handle in handles:
                handle.remove()
        losses = loss(made[0] if isinstance(made, tuple) and not isinstance(made, PackedSequence) else made, y)
        _fill_grads(list(calls.values()), losses)
    return list(calls.values()), losses.detach()


@contextmanager
def _looked_at(model: nn.Module) -> Iterator[None]:
    """In eval mode; without cuDNN, which has no backward pass there."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _keeper(name: str, calls: dict[int, Call]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        given = args[1] if len(args) > 1 else kwargs.get("hx")
        hx = (given,) if isinstance(given, Tensor) else None if given is None else tuple(given)
        outputs, final = result
        call = Call(
            name, module, args[0] if args else kwargs["input"], hx, kwargs.get("reset"), outputs,
            (final,) if isinstance(final, Tensor) else tuple(final),
        )  # fmt: skip
        for tensor in (_data(outputs), *call.final):
            if not tensor.requires_grad:  # a frozen model
                tensor.requires_grad_()
        before = calls.get(id(module))
        if before is not None:
            call = call if call.steps > before.steps else before
            call.calls = before.calls + 1
        calls[id(module)] = call

    return hook


def _fill_grads(calls: list[Call], losses: Any) -> None:
    if not isinstance(losses, Tensor):
        raise ValueError(
            f"loss returned a {type(losses).__name__}, wanted a tensor: the losses of each step, or their sum"
        )
    if not calls:
        raise ValueError("the model called none of its recurrent layers on this x")
    tensors = [tensor for call in calls for tensor in (_data(call.outputs), *call.final)]
    total = losses.sum()
    grads = torch.autograd.grad(total, tensors, allow_unused=True) if total.requires_grad else (None,) * len(tensors)
    if all(grad is None for grad in grads):
        raise ValueError(
            "the loss does not depend on a recurrent layer's outputs: check detach, no_grad and what it computes from"
        )
    left = list(grads)
    for call in calls:
        call.grads, left = tuple(left[: 1 + len(call.final)]), left[1 + len(call.final) :]


def _data(tensor: Any) -> Tensor:
    return tensor.data if isinstance(tensor, PackedSequence) else tensor


def step_losses(losses: Tensor, call: Call, sample: int) -> Tensor | None:
    """L(t) of one sample [T], from the losses as the user's function gave them; None where that cannot be told.

    losses: [T, B, ...], or [B, T, ...] if the layer is batch_first, [T, ...] without a batch; [B, ...] is the last step's.
    """
    steps, batch = call.steps, call.batch
    if call.unbatched:
        return losses.flatten(1).sum(1) if losses.dim() and losses.shape[0] == steps else None
    orders = [((steps, batch), 0), ((batch, steps), 1)]
    for shape, time in reversed(orders) if call.layer.batch_first else orders:
        if tuple(losses.shape[:2]) == shape:
            rows = losses[:, sample] if time == 0 else losses[sample]
            return rows.reshape(steps, -1).sum(1)[: call.lengths[sample]]
    if losses.dim() and losses.shape[0] == batch:
        alone = losses.new_zeros(call.lengths[sample])
        alone[-1] = losses[sample].sum()
        return alone
    return None


__all__ = ["Call", "Loss", "Sample", "capture", "step_losses"]
