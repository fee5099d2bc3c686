"""How every layer runs, whatever its cell: from an input in one of torch.nn's forms to a kernel, and back.

The input, the state and the resets are brought into time first (forms.py) and checked (layer_input.py); the fastest kernel
that can runs over them (kernels/choose.py); the outputs go back in the form of the input.
"""

import operator
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bptt.cells import Cell, State, Weights
from bptt.cells.probe import uphold
from bptt.forms import Form, Hidden, Input, as_hidden
from bptt.kernels import BACKENDS, Sequences, Stack, choose
from bptt.layer_input import check_input, initial_state
from bptt.overrides import end_as_overridden, overrides_any, start_as_overridden
from bptt.parameters import Named, compute_named_shapes, named_shapes, take_weights
from bptt.recording import as_one_node, is_recorded, unrecorded_checks
from bptt.torch_private import flat_weight_names, flat_weights, is_traced, own_parameters, update_flat_weights
from bptt.warning import warn


class BaseLayer(nn.Module):
    """What the drop-in layers and `Recurrent` share: everything but how their parameters are made.

    Shapes, for input x [T, B, D] ([B, T, D] with batch_first, [T, D] unbatched, or a PackedSequence):
        outputs  [T, B, directions·H] in the form of the input (P instead of H with a projection)
        state    [layers·directions, B, H or P] for each component, never batch first; [layers·directions, H] unbatched
    """

    cell: Cell
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    backend: str
    _overrides: ClassVar[bool] = False  # whether a subclass overrides methods that torch.nn's forward calls

    def forward(self, input: Input, hx: Hidden | None = None, *, reset: Input | None = None) -> tuple[Any, Any]:
        """Run over all steps from the initial state `hx` (zeros if None).

        Args:
            input: see the class.
            hx: a Tensor, or for a cell with several state components (LSTM) a tuple of them.
            reset: bool, the shape of the input without its last axis: where True, that row's state is set to zero before
                that step, and no gradient crosses.

        Raises:
            ValueError: the input has neither 2 nor 3 axes, or another dtype than the weights.
            RuntimeError: sizes do not fit, or the backend that was named refuses.
        """
        if (hx is not None or type(input) is not Tensor) and is_recorded(input, hx):
            return as_one_node(self, input, hx, reset)
        form = Form.of(input, self.batch_first)
        if is_traced():
            with unrecorded_checks():
                stack, sequences, state = self._read_call(form, input, hx, reset)
        else:
            stack, sequences, state = self._read_call(form, input, hx, reset)
        outputs, final = choose(self.backend, stack, sequences, state).run(stack, sequences, state)
        if self._overrides:
            return form.out(outputs), end_as_overridden(self, form, final)
        final = tuple([form.state_out(component) for component in final])
        return form.out(outputs), as_hidden(final)

    def layer_weights(self, layer: int, direction: int) -> Weights:
        """Return the parameters of one layer and direction by short name ("weight_hh"), in torch.nn's order.

        Raises RuntimeError if one was replaced by a tensor of another shape: a kernel takes that from the layer's sizes.
        """
        return self._stack().weights[layer][direction]

    def _read_call(
        self, form: Form, input: Input, hx: Hidden | None, reset: Input | None
    ) -> tuple[Stack, Sequences, State]:
        """Return what a kernel is given, checked: the weights, the input and the initial state."""
        given = None if reset is None else form.reset(reset)
        # Not form.batch_sizes: the compiler of torch 2.10 takes a property of a NamedTuple for something that is not None.
        sizes = None if form.packed is None else form.packed.batch_sizes
        sequences = Sequences(form.time_first(input), sizes, given)
        stack = self._stack()
        if self._overrides:
            hx, form = start_as_overridden(self, form, sequences, hx)
        check_input(self, sequences, next(iter(stack.weights[0][0].values())))
        state = initial_state(self, sequences, hx, form)
        uphold(self, stack.cell, stack.weights[0][0])
        return stack, sequences, state

    def _stack(self) -> Stack:
        cell, compiling = self.cell, torch.compiler.is_compiling()
        # From a cache: computed at each call, it costs more than a small step. But torch.compile warns of such caches.
        named = (compute_named_shapes if compiling else named_shapes)(
            cell, self.num_layers, self.bidirectional, self.input_size, self.hidden_size, self.bias, self.proj_size
        )
        tensors = iter(self._by_name(named) if compiling else self._tensors(named))
        weights = tuple([tuple([take_weights(names, tensors) for names in directions]) for directions in named])
        return Stack(cell, weights, self.dropout if self.training else 0.0)

    def _tensors(self, named: Named) -> Iterable[Tensor]:
        """Return the weights in use, in the order of `named`."""
        return self._by_name(named)

    def _by_name(self, named: Named) -> Iterable[Tensor]:
        own = own_parameters(self)
        names = [name for directions in named for parameters in directions for _, name, _ in parameters]
        # What is not there is parametrized, or was replaced by a plain tensor.
        return [getattr(self, name) if (weight := own.get(name)) is None else weight for name in names]

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse torch.jit.script, which asks each module for this method and compiles what it gives back."""
        raise RuntimeError(
            f"torch.jit.script got bptt.{type(self).__name__}, and compiles torch.nn's own layers alone: "
            "call bptt.unfuse(model) first, or use torch.jit.trace or torch.export"
        )


class TorchLayer(BaseLayer, nn.RNNBase):
    """A drop-in for one of torch.nn's layers: nn.RNNBase makes, names and initialises the parameters."""

    def __init__(self, mode: str, backend: str, *args: Any, **keywords: Any) -> None:
        nn.RNNBase.__init__(self, mode, *args, **keywords)
        self.backend = known_backend(backend)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls._overrides = overrides_any(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "qconfig" and not isinstance(self, (nn.RNN, nn.GRU, nn.LSTM)):  # set by torch.ao's quantization
            warn(
                f"torch.ao's quantization knows torch.nn's own layers alone and leaves bptt.{type(self).__name__} as it is: "
                "call bptt.unfuse(model) first to have it quantized"
            )
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        """Return torch.nn's text, and the backend if one was named."""
        return super().extra_repr() + ("" if self.backend == "auto" else f", backend={self.backend}")

    def _tensors(self, named: Named) -> Iterable[Tensor]:
        """Return torch.nn's list of the weights in use, which other code may fill with tensors of its own."""
        flat, own = flat_weights(self), own_parameters(self)
        if flat is None:
            return self._by_name(named)
        if len(own) < len(flat) or not all(map(operator.is_, flat, own.values())):
            update_flat_weights(self)  # as torch.nn does at each call
            flat = flat_weights(self) or []
            missing = [name for name, weight in zip(flat_weight_names(self), flat, strict=True) if weight is None]
            if missing:
                raise RuntimeError(f"the layer has no tensor {missing[0]}: set it before the call")
        return flat  # type: ignore[return-value]  # none of them is None


def known_backend(backend: str) -> str:
    """Return the name of a backend. Raises ValueError if there is none of that name."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(map(repr, BACKENDS))}")
    return backend
