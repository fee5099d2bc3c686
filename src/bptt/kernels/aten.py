"""torch's own recurrent layers: oneDNN for a padded LSTM on the CPU, cuDNN on the GPU, a loop under autograd elsewhere."""

from typing import Any

import torch
from torch import Tensor

from bptt.cells import GRU, LSTM, Cell, Elman, State
from bptt.kernels.autocast import in_the_weights_format, is_onednn, onednn_has_lstm
from bptt.kernels.base import Kernel, Sequences, Stack
from bptt.torch_private import is_traced, only_first_derivatives, recurrent_operator, transforms_active

_NAMES: dict[Cell, str] = {Elman("tanh"): "rnn_tanh", Elman("relu"): "rnn_relu", GRU(): "gru", LSTM(): "lstm"}
_OPERATORS = {cell: operator for cell, name in _NAMES.items() if (operator := recurrent_operator(name)) is not None}


class Aten(Kernel):
    """The operators that torch.nn.RNN, GRU and LSTM run; with resets, one call for each stretch between two of them."""

    name = "aten"

    def refusal(self, stack: Stack, sequences: Sequences, state: State = ()) -> str | None:
        """Refuse other cells, resets in two directions or packed sequences, and derivatives that torch's operators lack."""
        if type(stack.cell) not in (Elman, GRU, LSTM) or stack.cell not in _OPERATORS:
            return f"torch has no operator for {stack.cell}, only for Elman('tanh'), Elman('relu'), GRU() and LSTM()"
        if not only_first_derivatives():
            return "torch's operators have no vmap, no forward-mode derivatives, and oneDNN's no second derivatives"
        if sequences.batch_sizes is not None and transforms_active():
            return "torch's operators for packed sequences read the batch sizes where torch.func has hidden them"
        if sequences.reset is None:
            return None
        if len(stack.weights[0]) == 2:
            return "torch's bidirectional operators know no reset"
        if sequences.batch_sizes is not None:
            return "torch's operators for packed sequences know no reset"
        if is_traced() or torch.compiler.is_exporting():
            return "where the sequence is cut for torch's operators would be recorded with it"
        return None

    def run(self, stack: Stack, sequences: Sequences, state: State) -> tuple[Tensor, State]:
        """Call the operator, once for each stretch between two resets; in float32 where autocast's format has no LSTM."""
        if _lacks_lstm(stack, sequences):
            return in_the_weights_format(self.run, stack, sequences, state)
        if sequences.reset is None:
            return _call(stack, sequences, state)
        x, reset = sequences.x, sequences.reset
        starts = [0, *(t for t in reset.any(dim=1).nonzero().flatten().tolist() if t > 0)]
        outputs = []
        for start, stop in zip(starts, [*starts[1:], len(x)], strict=True):
            resets = reset[start].view(1, -1, 1)
            state = tuple(torch.where(resets, torch.zeros_like(s), s) for s in state)
            y, state = _call(stack, Sequences(x[start:stop]), state)
            outputs.append(y)
        return torch.cat(outputs), state


def _lacks_lstm(stack: Stack, sequences: Sequences) -> bool:
    """Whether autocast would ask oneDNN for an LSTM that it lacks, on this processor or under torch.compile.

    torch would then run a loop, whose results have another format.
    """
    if not sequences.x.is_cpu or not torch.is_autocast_enabled("cpu") or not is_onednn(stack, sequences):
        return False
    return torch.compiler.is_compiling() or not onednn_has_lstm(torch.get_autocast_dtype("cpu"))


def _call(stack: Stack, sequences: Sequences, state: State) -> tuple[Tensor, State]:
    operator = _OPERATORS[stack.cell]
    flat = [weight for directions in stack.weights for weights in directions for weight in weights.values()]
    hx: Any = list(state) if len(state) > 1 else state[0]
    bias = "bias_ih" in stack.weights[0][0]
    bidirectional = len(stack.weights[0]) == 2
    x = sequences.x
    if torch.compiler.is_compiling() and not x.requires_grad and any(w.requires_grad for w in flat):
        x = _Differentiable.apply(x, flat[0])
    options = (flat, bias, len(stack.weights), stack.dropout, stack.dropout > 0, bidirectional)
    if sequences.batch_sizes is not None:
        y, *final = operator(x, sequences.batch_sizes, hx, *options)
    else:
        y, *final = operator(x, hx, *options, False)
    if torch.compiler.is_compiling():  # where the LSTM of torch 2.10 gives each final state an axis too many
        final = [end.reshape(start.shape) for end, start in zip(final, state, strict=True)]
    return y, tuple(final)


class _Differentiable(torch.autograd.Function):
    """The identity of x, which autograd takes to depend on a weight.

    torch.compile takes oneDNN's LSTM for an input without gradient, and then fails, since that operator hands None to the
    backward pass (torch 2.13). With an input that has one, it takes the plain loop.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None
