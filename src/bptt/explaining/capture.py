"""One forward and one backward pass of the user's model: each recurrent layer's input and the gradient at its outputs.

The model stays as it was: no `.grad` is filled, no mode is changed. Dropout is off meanwhile.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bptt.forms import Arguments, Form, components, data_of
from bptt.layers import cell_of, find_cell
from bptt.parameters import directions_of

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
class CapturedCall:
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
    def form(self) -> Form:
        """The form of the call's input and outputs."""
        return Form.of(self.outputs, self.layer.batch_first)

    @property
    def steps(self) -> int:
        """T, padding included."""
        return self.form.padded(self.outputs).shape[0]

    @property
    def batch(self) -> int:
        """The number of samples, B."""
        return self.form.padded(self.outputs).shape[1]

    @property
    def lengths(self) -> list[int]:
        """Steps of each sample."""
        lengths = self.form.lengths
        return [self.steps] * self.batch if lengths is None else lengths.tolist()

    def default_sample(self) -> int:
        """Return the place of the longest sample; among equals, of the first to which a gradient came."""
        reached = [int(bool((self._grad(b) != 0).any())) for b in range(self.batch)]
        best = max(zip(self.lengths, reached, strict=True))
        return list(zip(self.lengths, reached, strict=True)).index(best)

    def sample(self, number: int) -> Sample:
        """Return the sample at one place of the batch. Raises ValueError where there is none."""
        if not 0 <= number < self.batch:
            raise ValueError(
                f"samples has {number}, the batch of {self.name} has {self.batch}: give places from 0 to {self.batch - 1}"
            )
        return Sample(
            self._rows_of(self.x, number).detach(),
            None if self.hx is None else tuple(self._state_of(component.detach(), number) for component in self.hx),
            None if self.reset is None else self._rows_of(self.reset, number),
            self._rows_of(self.outputs, number).detach(),
            self._grad(number),
            self._ends(number),
        )

    def _rows_of(self, rows: Any, number: int) -> Tensor:
        """Return the steps [T, ...] of one sample, of a tensor that has the form of the call."""
        return self.form.padded(rows)[: self.lengths[number], number]

    def _state_of(self, component: Tensor, number: int) -> Tensor:
        """One sample's [layers·directions, H or P] of a component of the state."""
        return self.form.with_batch(component)[:, number]

    def _grad(self, number: int) -> Tensor:
        """∂L/∂h(t), with what came through the final h added where that state is an output: at the last step."""
        of_outputs, of_final_h = self.grads[0], self.grads[1]
        if of_outputs is None:
            grad = torch.zeros_like(self._rows_of(self.outputs, number).detach())
        else:
            packed = isinstance(self.outputs, PackedSequence)
            grad = self._rows_of(self.outputs._replace(data=of_outputs) if packed else of_outputs, number).clone()
        if of_final_h is not None:
            directions = directions_of(self.layer)
            top = self._state_of(of_final_h, number)[-directions:]
            for piece, end, last in zip(grad.chunk(directions, -1), top, (-1, 0), strict=False):
                piece[last] += end
        return grad

    def _ends(self, number: int) -> tuple[str, ...]:
        """The components of the final state that get a gradient beside h of the last layer."""
        below = slice(None, -directions_of(self.layer))
        found = []
        for component, grad in zip(cell_of(self.layer).states, self.grads[1:], strict=True):
            if grad is None:
                continue
            of_layers = self._state_of(grad, number)
            if bool((of_layers[below] if component == "h" else of_layers).any()):
                found.append(component)
        return tuple(found)


def capture(
    model: nn.Module, x: Any, y: Any, loss: Loss, reset: Tensor | None = None
) -> tuple[list[CapturedCall], Tensor]:
    """Return the calls of the model's recurrent layers in their order, and `loss(model(x), y)` without its graph.

    Raises ValueError where the model holds no recurrent layer, calls none, or the loss does not depend on one.
    """
    layers = _recurrent_layers(model)
    calls: dict[int, CapturedCall] = {}
    with _evaluating(model), torch.enable_grad():
        handles = [m.register_forward_hook(_capturing_hook(name, calls), with_kwargs=True) for name, m in layers]
        try:
            made = model(x) if reset is None else model(x, reset=reset)
        finally:
            for handle in handles:
                handle.remove()
        outputs = made[0] if isinstance(made, tuple) and not isinstance(made, PackedSequence) else made
        losses = loss(outputs, y)
        _fill_grads(list(calls.values()), losses)
    return list(calls.values()), losses.detach()


def _recurrent_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The recurrent layers of a model with their names. Raises ValueError if there is none."""
    layers = [(name or type(m).__name__.lower(), m) for name, m in model.named_modules() if find_cell(m) is not None]
    if not layers:
        cells = any(isinstance(m, nn.RNNCellBase) for m in model.modules())
        hint = ", torch.nn's single cells cannot be seen" if cells else ""
        raise ValueError(
            f"{type(model).__name__} holds no recurrent layer{hint}: wanted torch.nn.RNN, GRU or LSTM, bptt's of the same "
            "names, or bptt.Recurrent"
        )
    return layers


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode, and cuDNN, which has no backward pass there, is off."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _capturing_hook(name: str, calls: dict[int, CapturedCall]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        given = Arguments.of(args, kwargs)
        outputs, final = result
        call = CapturedCall(name, module, given.input, given.hx, given.reset, outputs, components(final))
        for tensor in (data_of(outputs), *call.final):
            if not tensor.requires_grad:  # a frozen model
                tensor.requires_grad_()
        before = calls.get(id(module))
        if before is not None:
            call = call if call.steps > before.steps else before
            call.calls = before.calls + 1
        calls[id(module)] = call

    return hook


def _fill_grads(calls: list[CapturedCall], losses: Any) -> None:
    if not isinstance(losses, Tensor):
        raise ValueError(
            f"loss returned a {type(losses).__name__}, wanted a tensor: the losses of each step, or their sum"
        )
    if not calls:
        raise ValueError("the model called none of its recurrent layers on this x")
    tensors = [tensor for call in calls for tensor in (data_of(call.outputs), *call.final)]
    total = losses.sum()
    grads = torch.autograd.grad(total, tensors, allow_unused=True) if total.requires_grad else (None,) * len(tensors)
    if all(grad is None for grad in grads):
        raise ValueError(
            "the loss does not depend on a recurrent layer's outputs: check detach, no_grad and what it computes from"
        )
    left = list(grads)
    for call in calls:
        call.grads, left = tuple(left[: 1 + len(call.final)]), left[1 + len(call.final) :]


def step_losses(losses: Tensor, call: CapturedCall, sample: int) -> Tensor | None:
    """Return L(t) of one sample, [T], from the losses as the user's function returned them; None where that is unclear.

    losses: [T, B, ...], or [B, T, ...] if the layer is batch_first, [T, ...] without a batch; [B, ...] is the last step's.
    """
    steps, batch = call.steps, call.batch
    if call.form.unbatched:
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


__all__ = ["CapturedCall", "Loss", "Sample", "capture", "step_losses"]
