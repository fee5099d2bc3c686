"""Recurrent layers: torch.nn's three, and `Recurrent` for any cell; stacked, bidirectional, packed, with resets.

One path serves all: bring the input into the form of `kernels.Sequences`, let `kernels.choose` pick the loop, and give the
outputs back in the form of the input.
"""

import operator
from collections.abc import Iterable
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from bptt.cells import GRU as GRUCell
from bptt.cells import LSTM as LSTMCell
from bptt.cells import Cell, Elman, PointwiseCell, State, Weights, draw_uniform
from bptt.cells.contract import check_declaration
from bptt.cells.elman import Nonlinearity
from bptt.cells.probe import uphold
from bptt.forms import Form, Hidden, Input
from bptt.kernels import BACKENDS, Sequences, Stack, choose
from bptt.overrides import end_as_overridden, overrides_any, start_as_overridden
from bptt.parameters import Named, fitting, named_shapes, named_shapes_anew
from bptt.recording import as_one_node, is_recorded, unrecorded_checks
from bptt.warning import warn


class _Layer(nn.Module):
    """What the drop-in layers and `Recurrent` share: everything but how the parameters came to be.

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
            RuntimeError: sizes do not fit, or the backend insisted on refuses.
        """
        if (hx is not None or type(input) is not Tensor) and is_recorded(input, hx):
            return as_one_node(self, input, hx, reset)
        form = Form.of(input, self.batch_first)
        if torch._C._get_tracing_state() is None:
            stack, sequences, state = self._checked(form, input, hx, reset)
        else:
            with unrecorded_checks():
                stack, sequences, state = self._checked(form, input, hx, reset)
        outputs, final = choose(self.backend, stack, sequences, state).run(stack, sequences, state)
        if self._overrides:
            return form.out(outputs), end_as_overridden(self, form, final)
        final = tuple([form.state_out(component) for component in final])
        return form.out(outputs), final if len(final) > 1 else final[0]

    def layer_weights(self, layer: int, direction: int) -> Weights:
        """The parameters of one layer and direction by their short names (`weight_hh`), in torch.nn's order.

        Raises RuntimeError if one was replaced by a tensor of another shape: a kernel takes that from the layer's sizes.
        """
        return self._stack().weights[layer][direction]

    def _checked(
        self, form: Form, input: Input, hx: Hidden | None, reset: Input | None
    ) -> tuple[Stack, Sequences, State]:
        """What a kernel is given: the weights, the input and the initial state."""
        given = None if reset is None else form.reset(reset)
        sequences = Sequences(form.time_first(input), form.batch_sizes, given)
        stack = self._stack()
        if self._overrides:
            hx, form = start_as_overridden(self, form, sequences, hx)
        self._check_input(sequences, next(iter(stack.weights[0][0].values())))
        state = self._initial_state(sequences, hx, form)
        uphold(self, stack.cell, stack.weights[0][0])
        return stack, sequences, state

    def _stack(self) -> Stack:
        cell, compiling = self.cell, torch.compiler.is_compiling()
        # From memory: worked out at each call, it costs more than a small step. But torch.compile warns of such memories.
        named = (named_shapes_anew if compiling else named_shapes)(
            cell, self.num_layers, self.bidirectional, self.input_size, self.hidden_size, self.bias, self.proj_size
        )
        tensors = iter(self._by_name(named) if compiling else self._tensors(named))
        weights = tuple([tuple([fitting(names, tensors) for names in directions]) for directions in named])
        return Stack(cell, weights, self.dropout if self.training else 0.0)

    def _tensors(self, named: Named) -> Iterable[Tensor]:
        """The weights in use, in the order of `named`."""
        return self._by_name(named)

    def _by_name(self, named: Named) -> Iterable[Tensor]:
        own = self._parameters
        names = [name for directions in named for parameters in directions for _, name, _ in parameters]
        # What is not there is parametrized, or was replaced by a plain tensor.
        return [getattr(self, name) if (weight := own.get(name)) is None else weight for name in names]

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse torch.jit.script, which asks each module for this method and compiles what it gives back."""
        raise RuntimeError(
            f"torch.jit.script got bptt.{type(self).__name__}, and compiles torch.nn's own layers alone: "
            "call bptt.unfuse(model) first, or use torch.jit.trace or torch.export"
        )

    def _check_input(self, sequences: Sequences, weight: Tensor) -> None:
        x = sequences.x
        if x.dtype is not weight.dtype and not _converts(x, weight):
            raise ValueError(
                f"input has dtype {x.dtype}, the weights have {weight.dtype}: "
                f"pass input.to({weight.dtype}), or convert the layer with .to({x.dtype})"
            )
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input has {x.shape[-1]} features, input_size is {self.input_size}: its last axis must be the features"
            )
        reset = sequences.reset
        if reset is not None and (reset.dtype, reset.shape, reset.device) != (torch.bool, x.shape[:-1], x.device):
            raise RuntimeError(
                f"reset is {reset.dtype} of shape {tuple(reset.shape)} (time first) on {reset.device}, wanted torch.bool of "
                f"shape {tuple(x.shape[:-1])} on {x.device}: one flag for each step of each row of the input"
            )
        if x.shape[0] == 0:
            raise RuntimeError("input has 0 time steps, at least 1 is wanted: drop empty sequences before the layer")

    def _initial_state(self, sequences: Sequences, hx: Hidden | None, form: Form) -> State:
        x, sizes = sequences.x, sequences.batch_sizes
        batch: Any = x.shape[1] if sizes is None else sizes[0]
        if sizes is not None and torch._C._get_tracing_state() is None:
            batch = int(batch)  # torch.jit.trace records where it comes from, and would keep the number
        rows = self.num_layers * (2 if self.bidirectional else 1)
        widths = [self.proj_size or self.hidden_size, *[self.hidden_size] * (len(self.cell.states) - 1)]
        if hx is None:
            return tuple([x.new_zeros(rows, batch, width) for width in widths])
        given = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        if len(given) != len(widths):
            names = ", ".join(f"{name}_0" for name in self.cell.states)
            raise RuntimeError(
                f"the initial state has {len(given)} tensors, wanted {len(widths)}: pass ({names}) or None"
            )
        for name, component, width in zip(self.cell.states, given, widths, strict=True):
            self._check_state(name, component, (rows, batch, width), form)
            if component.device != x.device or (component.dtype is not x.dtype and not _converts(x, component)):
                raise RuntimeError(
                    f"hidden state {name} is {component.dtype} on {component.device}, the input {x.dtype} on {x.device}: "
                    f"pass state.to(input)"
                )
        return tuple(form.state_in(component) for component in given)

    def _check_state(self, name: str, component: Tensor, wanted: tuple[int, int, int], form: Form) -> None:
        wanted_shape = (wanted[0], wanted[2]) if form.unbatched else wanted
        got = tuple(component.shape)
        if got == wanted_shape:
            return
        if len(got) == 3 and not form.unbatched and (got[0], got[2]) == (wanted[0], wanted[2]):
            raise RuntimeError(
                f"hidden state {name} has batch {got[1]}, input has batch {wanted[1]}: pass state[:, :{wanted[1]}] or None"
            )
        raise RuntimeError(
            f"hidden state {name} has shape {got}, wanted {wanted_shape} "
            f"(layers·directions, {'' if form.unbatched else 'batch, '}units): pass that shape or None"
        )


class _TorchLayer(_Layer, nn.RNNBase):
    """A drop-in for one of torch.nn's layers: nn.RNNBase makes, names and initialises the parameters."""

    def __init__(self, mode: str, backend: str, *args: Any, **keywords: Any) -> None:
        nn.RNNBase.__init__(self, mode, *args, **keywords)
        self.backend = _known_backend(backend)

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
        """torch.nn's text, and the backend if one is insisted on."""
        return super().extra_repr() + ("" if self.backend == "auto" else f", backend={self.backend}")

    def _tensors(self, named: Named) -> Iterable[Tensor]:
        """torch.nn runs by the list `_flat_weights`, which other code may fill with tensors of its own."""
        flat, own = self._flat_weights, self._parameters
        if len(own) < len(flat) or not all(map(operator.is_, flat, own.values())):
            self._update_flat_weights()  # as torch.nn does at each call
            missing = [
                n for n, weight in zip(self._flat_weights_names, self._flat_weights, strict=True) if weight is None
            ]
            if missing:
                raise RuntimeError(f"the layer has no tensor {missing[0]}: set it before the call")
        return self._flat_weights  # type: ignore[return-value]  # none of them is None


class RNN(_TorchLayer):
    """h_t = φ(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh): the lecture's network, as torch.nn.RNN.

    Takes torch.nn.RNN's arguments, `nonlinearity` also 'sigmoid', and `backend` ('auto', 'aten' or 'reference').

    >>> outputs, h_n = RNN(10, 20)(torch.randn(5, 3, 10))
    >>> outputs.shape, h_n.shape
    (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        backend: str = "auto",
        **unknown: Any,
    ) -> None:
        _refuse(unknown, "RNN")
        mode = _mode_of(Elman(nonlinearity))  # type: ignore[arg-type]  # Elman checks it
        options = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        # nn.RNNBase knows no sigmoid; it takes no more from the mode than the width of the gates.
        super().__init__("RNN_TANH", backend, *options, device=device, dtype=dtype)
        self.nonlinearity, self.mode = nonlinearity, mode

    @property
    def cell(self) -> Elman:  # type: ignore[override]
        """The cell that `mode` names, also if it is set later; as in torch.nn, `nonlinearity` then decides nothing."""
        return _ELMAN[self.mode]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also that of bptt 0.1.0, which kept the cell."""
        cell = state.get("cell")
        state = {name: value for name, value in state.items() if name != "cell"}
        super().__setstate__(state if cell is None else state | {"mode": _mode_of(cell)})


class GRU(_TorchLayer):
    """Gated recurrent unit, as torch.nn.GRU (equations: `bptt.cells.GRU`).

    Takes torch.nn.GRU's arguments, and `backend` ('auto', 'aten' or 'reference').

    >>> outputs, h_n = GRU(10, 20, num_layers=2, bidirectional=True)(torch.randn(5, 3, 10))
    >>> outputs.shape, h_n.shape
    (torch.Size([5, 3, 40]), torch.Size([4, 3, 20]))
    """

    cell = GRUCell()

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        backend: str = "auto",
        **unknown: Any,
    ) -> None:
        _refuse(unknown, "GRU")
        options = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__("GRU", backend, *options, device=device, dtype=dtype)


class LSTM(_TorchLayer):
    """Long short-term memory, as torch.nn.LSTM (equations: `bptt.cells.LSTM`); the state is the tuple (h, c).

    Takes torch.nn.LSTM's arguments, and `backend` ('auto', 'aten' or 'reference').

    >>> outputs, (h_n, c_n) = LSTM(10, 20, proj_size=6)(torch.randn(5, 3, 10))
    >>> outputs.shape, h_n.shape, c_n.shape
    (torch.Size([5, 3, 6]), torch.Size([1, 3, 6]), torch.Size([1, 3, 20]))
    """

    cell = LSTMCell()
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]  # of two states, as torch.nn.LSTM's
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        backend: str = "auto",
    ) -> None:
        options = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        super().__init__("LSTM", backend, *options, device=device, dtype=dtype)


class Recurrent(_Layer):
    """Any cell over time: stacked, bidirectional, with dropout, packed sequences and resets, as the layers above.

    Args:
        cell: a `bptt.PointwiseCell` (with hand-derived or autograd's partials) or any other `bptt.Cell`.
        others: as for torch.nn.LSTM; proj_size only for cells that allow it.

    The parameters are named as in torch.nn: `weight_hh_l0`, `weight_hh_l0_reverse`, and so on for whatever names the
    cell's `shapes` has.

    >>> layer = Recurrent(Elman("sigmoid"), 10, 20)
    >>> layer(torch.randn(5, 3, 10))[0].shape
    torch.Size([5, 3, 20])
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _check_sizes(cell, input_size, hidden_size, num_layers, dropout, proj_size)
        check_declaration(cell, input_size, hidden_size, bias, proj_size)
        self.cell, self.backend = cell, _known_backend(backend)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.proj_size = bidirectional, proj_size
        for directions in named_shapes(cell, num_layers, bidirectional, input_size, hidden_size, bias, proj_size):
            for names in directions:
                for _, name, shape in names:
                    self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as the cell says; by default from U(-1/√H, 1/√H)."""
        by_default = type(self.cell).reset_parameters is Cell.reset_parameters
        for layer in range(self.num_layers):
            for direction in range(2 if self.bidirectional else 1):
                weights = self.layer_weights(layer, direction)
                if by_default:
                    draw_uniform(weights, self.hidden_size)
                else:
                    self.cell.reset_parameters(weights)

    def extra_repr(self) -> str:
        """The cell, the sizes, and what differs from the defaults."""
        defaults = {
            "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False,
            "proj_size": 0, "backend": "auto",
        }  # fmt: skip
        options = [f"{k}={getattr(self, k)}" for k, default in defaults.items() if getattr(self, k) != default]
        return ", ".join([str(self.cell), str(self.input_size), str(self.hidden_size), *options])


def _known_backend(backend: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(map(repr, BACKENDS))}")
    return backend


def _refuse(unknown: dict[str, Any], layer: str) -> None:
    """torch.nn's errors: a ValueError for proj_size, which is the LSTM's, a TypeError for what nobody knows."""
    if "proj_size" in unknown:
        raise ValueError(f"proj_size argument is only supported for LSTM, not {layer}: leave it out, or use bptt.LSTM")
    if unknown:
        raise TypeError(f"{layer}() got an unexpected keyword argument {next(iter(unknown))!r}")


def _check_sizes(
    cell: Cell, input_size: int, hidden_size: int, num_layers: int, dropout: float, proj_size: int
) -> None:
    for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
        if not isinstance(size, int):
            raise TypeError(f"{name} is a {type(size).__name__}, wanted an int")
        if size <= 0:
            raise ValueError(f"{name} is {size}, must be greater than zero")
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout is {dropout}, must be in the range [0, 1]: the share of the units that is dropped")
    if dropout and num_layers == 1:
        warn(
            f"dropout={dropout} has no effect with num_layers=1, since it acts between layers: leave it out, or stack some"
        )
    if proj_size and not (isinstance(cell, PointwiseCell) and cell.projectable):
        raise ValueError(
            f"proj_size is {proj_size}, but {cell} reads h itself, so it cannot be projected: leave it out"
        )
    if not 0 <= proj_size < hidden_size:
        raise ValueError(f"proj_size is {proj_size}, must be at least 0 and smaller than hidden_size {hidden_size}")


def _converts(x: Tensor, other: Tensor) -> bool:
    """Whether autocast brings both into one number format; float64 it leaves alone."""
    formats = {torch.float32, torch.bfloat16, torch.float16}
    return torch.is_autocast_enabled(x.device.type) and {x.dtype, other.dtype} <= formats


class _Modes(dict[str, Elman]):
    def __missing__(self, mode: str) -> Elman:
        raise AssertionError(f"mode is {mode!r}: set it to one of {', '.join(map(repr, self))}")


_ELMAN = _Modes({f"RNN_{name.upper()}": Elman(name) for name in get_args(Nonlinearity)})
_NN_CELLS: dict[str, Cell] = {**_ELMAN, "GRU": GRUCell(), "LSTM": LSTMCell()}


def _mode_of(cell: Elman) -> str:
    """torch.nn.RNN's word for it."""
    return f"RNN_{cell.nonlinearity.upper()}"


def cell_of(module: nn.Module) -> Cell | None:
    """The cell that one of torch.nn's or bptt's recurrent layers repeats; None for any other module."""
    cell = getattr(module, "cell", None)
    if isinstance(module, (Recurrent, nn.RNNBase)) and isinstance(cell, Cell):
        return cell
    return _NN_CELLS.get(module.mode) if isinstance(module, nn.RNNBase) else None
