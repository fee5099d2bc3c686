"""Recurrent layers: torch.nn's three, and `Recurrent` for any cell; stacked, bidirectional, packed, with resets.

Here is how each is made; how all of them run is in layer_base.py.
"""

from typing import Any, get_args

import torch
from torch import nn

from bptt.cells import GRU as GRUCell
from bptt.cells import LSTM as LSTMCell
from bptt.cells import Cell, Elman, PointwiseCell, draw_uniform
from bptt.cells.contract import check_declaration
from bptt.cells.elman import Nonlinearity
from bptt.layer_base import BaseLayer, TorchLayer, known_backend
from bptt.parameters import directions_of, named_shapes
from bptt.warning import warn


class RNN(TorchLayer):
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
        _refuse_unknown(unknown, "RNN")
        mode = _mode_of(Elman(nonlinearity))  # type: ignore[arg-type]  # Elman checks it
        options = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        # nn.RNNBase knows no sigmoid; it takes no more from the mode than the width of the gates.
        super().__init__("RNN_TANH", backend, *options, device=device, dtype=dtype)
        self.nonlinearity, self.mode = nonlinearity, mode

    @property
    def cell(self) -> Elman:  # type: ignore[override]
        """The cell that `mode` names, even if it is set later; as in torch.nn, `nonlinearity` then decides nothing."""
        return _ELMAN[self.mode]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled layer, also one of bptt 0.1.0, which kept the cell instead of the mode."""
        cell = state.get("cell")
        state = {name: value for name, value in state.items() if name != "cell"}
        super().__setstate__(state if cell is None else state | {"mode": _mode_of(cell)})


class GRU(TorchLayer):
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
        _refuse_unknown(unknown, "GRU")
        options = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__("GRU", backend, *options, device=device, dtype=dtype)


class LSTM(TorchLayer):
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


class Recurrent(BaseLayer):
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
        self.cell, self.backend = cell, known_backend(backend)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.proj_size = bidirectional, proj_size
        for directions in named_shapes(cell, num_layers, bidirectional, input_size, hidden_size, bias, proj_size):
            for names in directions:
                for _, name, shape in names:
                    self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters, as the cell says; by default from U(-1/√H, 1/√H)."""
        by_default = type(self.cell).reset_parameters is Cell.reset_parameters
        for layer in range(self.num_layers):
            for direction in range(directions_of(self)):
                weights = self.layer_weights(layer, direction)
                if by_default:
                    draw_uniform(weights, self.hidden_size)
                else:
                    self.cell.reset_parameters(weights)

    def extra_repr(self) -> str:
        """Return the cell, the sizes, and what differs from the defaults."""
        defaults = {
            "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False,
            "proj_size": 0, "backend": "auto",
        }  # fmt: skip
        options = [f"{k}={getattr(self, k)}" for k, default in defaults.items() if getattr(self, k) != default]
        return ", ".join([str(self.cell), str(self.input_size), str(self.hidden_size), *options])


def _refuse_unknown(unknown: dict[str, Any], layer: str) -> None:
    """Raise torch.nn's errors: a ValueError for proj_size, which only the LSTM takes, a TypeError for any other keyword."""
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


class _Modes(dict[str, Elman]):
    def __missing__(self, mode: str) -> Elman:
        raise AssertionError(f"mode is {mode!r}: set it to one of {', '.join(map(repr, self))}")


_ELMAN = _Modes({f"RNN_{name.upper()}": Elman(name) for name in get_args(Nonlinearity)})
_NN_CELLS: dict[str, Cell] = {**_ELMAN, "GRU": GRUCell(), "LSTM": LSTMCell()}


def _mode_of(cell: Elman) -> str:
    """The value of torch.nn.RNN's attribute `mode` for a cell."""
    return f"RNN_{cell.nonlinearity.upper()}"


def find_cell(module: nn.Module) -> Cell | None:
    """Return the cell that one of torch.nn's or bptt's recurrent layers repeats; None for any other module."""
    cell = getattr(module, "cell", None)
    if isinstance(module, (Recurrent, nn.RNNBase)) and isinstance(cell, Cell):
        return cell
    return _NN_CELLS.get(module.mode) if isinstance(module, nn.RNNBase) else None


def cell_of(layer: nn.Module) -> Cell:
    """Return the cell that a recurrent layer repeats: of bptt's layers their own, of torch.nn's the one that equals it.

    Raises TypeError for a module that is no such layer.
    """
    cell = find_cell(layer)
    if cell is None:
        raise TypeError(
            f"layer is a {type(layer).__name__}, wanted torch.nn.RNN/GRU/LSTM, bptt.RNN/GRU/LSTM or bptt.Recurrent: "
            "pass the recurrent layer itself (model.rnn), not the model around it"
        )
    return cell
