"""Recurrent layers: torch.nn's three, and `Recurrent` for any cell; stacked, bidirectional, packed, with resets.

One path serves all: bring the input into the form of `kernels.Sequences`, let `kernels.choose` pick the loop, and give the
outputs back in the form of the input.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bptt.cells import GRU as GRUCell
from bptt.cells import LSTM as LSTMCell
from bptt.cells import Cell, Elman, PointwiseCell, State, Weights, draw_uniform
from bptt.cells.contract import check_declaration
from bptt.cells.probe import uphold
from bptt.kernels import BACKENDS, Sequences, Stack, choose
from bptt.warning import warn

Input = Tensor | PackedSequence
Hidden = Tensor | tuple[Tensor, ...]


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
        form = _Form.of(input, self.batch_first)
        sequences = Sequences(form.time_first(input), form.batch_sizes, form.reset(reset))
        stack = self._stack()
        self._check_input(sequences, next(iter(stack.weights[0][0].values())))
        state = self._initial_state(sequences, hx, form)
        uphold(self, self.cell, stack.weights[0][0])
        outputs, final = choose(self.backend, stack, sequences, state).run(stack, sequences, state)
        final = tuple(form.state_out(s) for s in final)
        return form.out(outputs), final if len(final) > 1 else final[0]

    def layer_weights(self, layer: int, direction: int) -> Weights:
        """The parameters of one layer and direction by their short names (`weight_hh`), in torch.nn's order.

        Raises RuntimeError if one was replaced by a tensor of another shape: a kernel takes that from the layer's sizes.
        """
        width = self.input_size if layer == 0 else (1 + self.bidirectional) * (self.proj_size or self.hidden_size)
        own, weights = self._parameters, {}
        for short, name, shape in _named(
            self.cell, layer, direction, width, self.hidden_size, self.bias, self.proj_size
        ):
            weight = own.get(name)
            if weight is None:  # parametrized, or replaced
                weight = getattr(self, name)
            if weight.shape != shape:
                raise RuntimeError(
                    f"{name} has shape {tuple(weight.shape)}, wanted {shape}: "
                    "give it that shape, or make a layer of other sizes"
                )
            weights[short] = weight
        return weights

    def _stack(self) -> Stack:
        directions = (0, 1) if self.bidirectional else (0,)
        weights = tuple([tuple([self.layer_weights(n, d) for d in directions]) for n in range(self.num_layers)])
        return Stack(self.cell, weights, self.dropout if self.training else 0.0)

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

    def _initial_state(self, sequences: Sequences, hx: Hidden | None, form: "_Form") -> State:
        x, sizes = sequences.x, sequences.batch_sizes
        batch = int(sizes[0]) if sizes is not None else x.shape[1]
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

    def _check_state(self, name: str, component: Tensor, wanted: tuple[int, int, int], form: "_Form") -> None:
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

    def extra_repr(self) -> str:
        """torch.nn's text, and the backend if one is insisted on."""
        return super().extra_repr() + ("" if self.backend == "auto" else f", backend={self.backend}")


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
        cell = Elman(nonlinearity)  # type: ignore[arg-type]  # which checks it
        # nn.RNNBase knows no sigmoid; the mode decides nothing but the width of the gates.
        mode = "RNN_RELU" if nonlinearity == "relu" else "RNN_TANH"
        options = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__(mode, backend, *options, device=device, dtype=dtype)
        self.nonlinearity, self.cell = nonlinearity, cell


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
        directions = 2 if bidirectional else 1
        for layer in range(num_layers):
            width = input_size if layer == 0 else directions * (proj_size or hidden_size)
            for direction in range(directions):
                for _, name, shape in _named(cell, layer, direction, width, hidden_size, bias, proj_size):
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


class _Form(NamedTuple):
    """In which of torch.nn's four forms the input came, and the way back to it."""

    batch_first: bool = False
    unbatched: bool = False
    packed: PackedSequence | None = None

    @staticmethod
    def of(input: Input, batch_first: bool) -> "_Form":
        if isinstance(input, PackedSequence):
            return _Form(packed=input)
        if input.dim() not in (2, 3):
            raise ValueError(
                f"input has {input.dim()} axes, wanted 3 (time, batch, features) or 2 (time, features): "
                "add the missing axis with unsqueeze, or flatten what is too many"
            )
        return _Form(batch_first=batch_first and input.dim() == 3, unbatched=input.dim() == 2)

    @property
    def batch_sizes(self) -> Tensor | None:
        return None if self.packed is None else self.packed.batch_sizes

    def time_first(self, input: Input) -> Tensor:
        if isinstance(input, PackedSequence):
            return input.data
        if self.unbatched:
            return input.unsqueeze(1)
        return input.transpose(0, 1) if self.batch_first else input

    def reset(self, reset: Input | None) -> Tensor | None:
        if reset is None:
            return None
        if isinstance(reset, PackedSequence) != (self.packed is not None):
            raise RuntimeError("reset must have the form of the input: both packed, or both padded tensors")
        return self.time_first(reset)

    def out(self, outputs: Tensor) -> Any:
        if self.packed is not None:
            return PackedSequence(outputs, *self.packed[1:])
        if self.unbatched:
            return outputs.squeeze(1)
        return outputs.transpose(0, 1) if self.batch_first else outputs

    def state_in(self, component: Tensor) -> Tensor:
        if self.unbatched:
            return component.unsqueeze(1)
        if self.packed is not None and self.packed.sorted_indices is not None:
            return component.index_select(1, self.packed.sorted_indices)
        return component

    def state_out(self, component: Tensor) -> Tensor:
        if self.unbatched:
            return component.squeeze(1)
        if self.packed is not None and self.packed.unsorted_indices is not None:
            return component.index_select(1, self.packed.unsorted_indices)
        return component


def _names_and_shapes(
    cell: Cell, layer: int, direction: int, input_size: int, hidden_size: int, bias: bool, proj_size: int
) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Of each parameter of a layer and direction the cell's short name for it, the layer's name, and the shape."""
    end = f"_l{layer}{'_reverse' if direction else ''}"
    shapes = cell.shapes(input_size, hidden_size, bias, proj_size)
    return tuple((name, name + end, shape) for name, shape in shapes.items())


_names_and_shapes_kept = functools.lru_cache(maxsize=1024)(_names_and_shapes)


def _named(cell: Cell, *sizes: Any) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """`_names_and_shapes`, from memory where that is possible: asked for at each call, it costs more than a small step."""
    if torch.compiler.is_compiling():  # which warns of such memories
        return _names_and_shapes(cell, *sizes)
    try:
        return _names_and_shapes_kept(cell, *sizes)
    except TypeError:  # a cell without hash
        return _names_and_shapes(cell, *sizes)


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


_NN_CELLS: dict[str, Cell] = {
    "RNN_TANH": Elman("tanh"),
    "RNN_RELU": Elman("relu"),
    "GRU": GRUCell(),
    "LSTM": LSTMCell(),
}


def cell_of(module: nn.Module) -> Cell | None:
    """The cell that one of torch.nn's or bptt's recurrent layers repeats; None for any other module."""
    cell = getattr(module, "cell", None)
    if isinstance(module, (Recurrent, nn.RNNBase)) and isinstance(cell, Cell):
        return cell
    return _NN_CELLS.get(module.mode) if isinstance(module, nn.RNNBase) else None
