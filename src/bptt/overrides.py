"""Overridden methods of torch.nn's layers: where a subclass overrides one that torch.nn's forward calls, bptt calls it too.

    RNN, GRU   permute_hidden (of a given state), check_forward_args
    LSTM       check_forward_args (not for packed sequences), permute_hidden (of a given state)
    all        permute_hidden of the final state

`check_forward_args` calls the others. Where nothing is overridden, none is called: `layers` has checks of its own.
"""

from typing import Any

from torch import Tensor, nn

from bptt.cells import State
from bptt.forms import Form, Hidden, as_hidden
from bptt.kernels import Sequences
from bptt.layer_input import initial_state

METHODS = (
    "check_forward_args",
    "check_hidden_size",
    "check_input",
    "get_expected_cell_size",
    "get_expected_hidden_size",
    "permute_hidden",
)


def overrides_any(kind: type) -> bool:
    """Whether the class `kind` overrides one of `METHODS`."""
    methods = [getattr(kind, name) for name in METHODS if hasattr(kind, name)]
    return any(getattr(method, "__module__", None) != nn.RNNBase.__module__ for method in methods)


def start_as_overridden(layer: Any, form: Form, sequences: Sequences, hx: Hidden | None) -> tuple[Hidden, Form]:
    """Make the calls that torch.nn makes before the loop; return the initial state, and the form that it is then in."""
    hidden = as_hidden(initial_state(layer, sequences, None, Form())) if hx is None else _with_batch(hx, form)
    permutation = None if form.packed is None else form.packed.sorted_indices
    calls = [lambda h: _checked(layer, form, sequences, h)]
    if hx is not None:
        calls.append(lambda h: layer.permute_hidden(h, permutation))
    if len(layer.cell.states) == 1:
        calls.reverse()
    for call in calls:
        hidden = call(hidden)
    return hidden, Form()


def end_as_overridden(layer: Any, form: Form, final: State) -> Hidden:
    """Return the final state as the layer's `permute_hidden` returns it."""
    if form.unbatched:
        final = tuple([component.squeeze(1) for component in final])
    permutation = None if form.packed is None else form.packed.unsorted_indices
    permuted: Hidden = layer.permute_hidden(as_hidden(final), permutation)
    return permuted


def _checked(layer: Any, form: Form, sequences: Sequences, hidden: Hidden) -> Hidden:
    if form.packed is None:
        x = sequences.x.transpose(0, 1) if layer.batch_first else sequences.x
        layer.check_forward_args(x, hidden, None)
    elif len(layer.cell.states) == 1:  # torch.nn.LSTM leaves the state of a packed sequence unchecked
        layer.check_forward_args(sequences.x, hidden, sequences.batch_sizes)
    return hidden


def _with_batch(hx: Hidden, form: Form) -> Hidden:
    return form.with_batch(hx) if isinstance(hx, Tensor) else tuple([form.with_batch(component) for component in hx])
