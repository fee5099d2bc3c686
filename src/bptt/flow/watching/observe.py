"""From the arguments of a forward hook to a `WatchedCall`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bptt.cells import GRU, LSTM, Cell, Elman, State
from bptt.flow.watching.call import Unsupported, WatchedCall
from bptt.flow.watching.handover import attached_to, detached_from, mark, sources
from bptt.forms import Arguments, Form, Input, components, data_of
from bptt.parameters import directions_of, state_shapes
from bptt.torch_private import version_of

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}  # other formats 0.1: the model's own rounding


def observe(
    module: nn.Module,
    cell: Cell,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    result: Any,
    earlier: Sequence[WatchedCall] = (),
) -> WatchedCall:
    """Keep the references to what a module was given and has returned, and ask for the gradients of the results.

    The graph itself is not kept. `earlier`: the module's calls so far, from which it may go on.

    Raises Unsupported where input and results are not of the layer's form.
    """
    x, hx, reset = Arguments.of(args, kwargs)
    given: State = hx or ()
    outputs, final = _results(result)
    form = _form_of(module, cell, x, given, outputs, final)
    if form is None:
        raise Unsupported(
            f"{type(module).__name__} takes or returns other than the layer that it is derived from, so what ran inside "
            "cannot be known: let it hold the layer, in a module of its own, instead of deriving from it"
        )
    named = [("input", data_of(x)), ("output", data_of(outputs)), *(("state", s) for s in (*given, *final))]
    call = WatchedCall(
        module, cell, form, _detached(x), tuple(s.detach() for s in given), _detached(outputs),
        tuple(s.detach() for s in final), reset,
        tuple((name, tensor.detach(), version_of(tensor)) for name, tensor in named),
        tolerance=_tolerance(data_of(outputs)), input_attached=data_of(x).requires_grad,
    )  # fmt: skip
    _find_origin(call, given, earlier)
    for place, tensor in enumerate((data_of(outputs), *final)):
        if tensor.requires_grad:
            call.differentiable = True
            mark(call, place, tensor)
            tensor.register_hook(call.catcher(place))
    return call


def _find_origin(call: WatchedCall, given: State, earlier: Sequence[WatchedCall]) -> None:
    """Find out where the initial state comes from."""
    if not any(bool(s.any()) for s in given):
        given = tuple(
            s for s in given if s.requires_grad
        )  # zeros: nothing is handed on, but a state may have been reset
    before = attached_to(given, earlier)
    if before:
        call.sources = () if call.module.bidirectional else sources(call, before)
        call.unfollowable = not call.sources
    elif given and all(s.grad_fn is None for s in given):
        call.follows = detached_from(call, earlier)
        call.began_detached = bool(call.follows) or _may_be_detached(call.module, call.cell, given)


def _may_be_detached(module: nn.Module, cell: Cell, state: State) -> bool:
    """Whether a layer of this kind may have left a state without graph: no leaf, and h in the range of its activation."""
    if any(s.requires_grad for s in state):
        return False
    h = state[0]
    match cell:
        case Elman(nonlinearity="relu"):
            return bool((h >= 0).all())
        case Elman() | GRU() | LSTM() if not module.proj_size:
            return bool((h.abs() <= 1).all())
        case _:
            return True


def _results(result: Any) -> tuple[Any, State]:
    """The outputs and the final state's components, of what a layer has returned; () where that is something else."""
    if not isinstance(result, tuple) or len(result) != 2:
        return None, ()
    outputs, final = result
    return outputs, components(final)


def _form_of(module: Any, cell: Cell, x: Any, given: State, outputs: Any, final: State) -> Form | None:
    """The form of a call; None unless all shapes are the layer's: a class derived from one may take what it likes."""
    tensors = (data_of(x), data_of(outputs), *given, *final)
    is_packed = isinstance(x, PackedSequence)
    if isinstance(outputs, PackedSequence) != is_packed or not all(isinstance(t, Tensor) for t in tensors):
        return None
    if data_of(x).dim() not in ((2,) if is_packed else (2, 3)):
        return None
    form = Form.of(x, module.batch_first)
    fits = _rows_fit(module, x, outputs) and _states_fit(module, cell, form, x, given, final)
    return form if fits else None


def _rows_fit(module: Any, x: Input, outputs: Input) -> bool:
    """Whether input and outputs have as many features as the layer's, at the same steps and samples."""
    *rows, features = data_of(x).shape
    width = directions_of(module) * (module.proj_size or module.hidden_size)
    return features == module.input_size and list(data_of(outputs).shape) == [*rows, width]


def _states_fit(module: Any, cell: Cell, form: Form, x: Input, given: State, final: State) -> bool:
    """Whether the initial state, where one was given, and the final one have the layer's shapes."""
    batch = form.time_first(x).shape[1] if form.batch_sizes is None else int(form.batch_sizes[0])
    wanted = state_shapes(module, cell, batch)
    return all([tuple(form.with_batch(s).shape) for s in state] == wanted for state in (final, given or final))


def _tolerance(outputs: Tensor) -> float:
    if torch.is_autocast_enabled(outputs.device.type):
        return 0.1
    return _TOLERANCE.get(outputs.dtype, 0.1)


def _detached(tensor: Any) -> Any:
    if isinstance(tensor, PackedSequence):
        return PackedSequence(tensor.data.detach(), *tensor[1:])
    return tensor.detach()
