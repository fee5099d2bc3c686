"""Write cases.txt: small layers with the outputs and gradients that the float64 reference finds for them.

    python -m tests.native.make_cases

`driver.cpp` runs the native core on these cases where there is no torch: on another processor, or an emulated one.

One case is a line `case NAME cell steps batch inputs hidden projected reverse`, then one line for each tensor, with the
name that it has in problem.h, its number of elements and its elements, then `end`. Inputs are multiples of 1/128,
which float32 holds exactly; the loss is Σ h d_h + Σ h_last d_h_last + Σ c_last d_c_last.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from bptt.cells import GRU, LSTM, Elman, PointwiseCell
from bptt.kernels.base import Sequences
from bptt.kernels.reference import Reference
from bptt.kernels.walk import Walk

CASES = Path(__file__).with_name("cases.txt")
# In the order in which problem.h numbers them.
CELLS: tuple[PointwiseCell, ...] = (Elman("tanh"), Elman("relu"), Elman("sigmoid"), GRU(), LSTM())


class Layer(NamedTuple):
    """The sizes of one case; those from `cell` to `reverse` are on its first line."""

    cell: int
    steps: int
    batch: int
    inputs: int
    hidden: int
    projected: int = 0
    reverse: int = 0
    sizes: tuple[int, ...] = ()  # of the steps of a packed batch
    resets: tuple[int, ...] = ()  # rows whose state is reset


LAYERS = {
    "tanh": Layer(0, 5, 3, 4, 17),
    "relu-reversed": Layer(1, 5, 2, 3, 9, reverse=1),
    "sigmoid-packed": Layer(2, 4, 3, 3, 9, sizes=(3, 2, 2, 1)),
    "gru": Layer(3, 5, 3, 4, 11),
    "gru-packed-reversed-with-resets": Layer(3, 4, 3, 2, 8, reverse=1, sizes=(3, 3, 2, 1), resets=(4, 7)),
    "gru-of-many-rows": Layer(3, 3, 9, 2, 5),
    "lstm": Layer(4, 5, 3, 4, 11),
    "lstm-with-resets": Layer(4, 4, 2, 3, 8, resets=(0, 5)),
    "lstm-projected": Layer(4, 4, 3, 3, 9, projected=5),
    "lstm-projected-packed-reversed": Layer(4, 4, 3, 2, 6, projected=3, reverse=1, sizes=(3, 2, 2, 1)),
}


def numbers(*shape: int) -> torch.Tensor:
    """Return random multiples of 1/64 between -1 and 1."""
    return torch.randint(-64, 65, shape).double() / 64


def _walk(layer: Layer, rows: int) -> Walk:
    form = (rows,) if layer.sizes else (layer.steps, layer.batch)
    reset = torch.zeros(rows, dtype=torch.bool)
    reset[list(layer.resets)] = True
    sizes = torch.tensor(layer.sizes) if layer.sizes else None
    x = torch.empty(*form, layer.inputs, dtype=torch.float64)
    return Walk.over(Sequences(x, sizes, reset.view(form) if layer.resets else None), bool(layer.reverse))


def _weights(layer: Layer) -> dict[str, torch.Tensor]:
    G, D, H, P = CELLS[layer.cell].gates, layer.inputs, layer.hidden, layer.projected
    shapes = {"weight_ih": (G * H, D), "weight_hh": (G * H, P or H), "bias_ih": (G * H,), "bias_hh": (G * H,)}
    shapes |= {"weight_hr": (P, H)} if P else {}
    return {name: numbers(*shape) / 2 for name, shape in shapes.items()}


def tensors(layer: Layer) -> dict[str, torch.Tensor]:
    """Return the tensors of one case by their names in problem.h, inputs first."""
    cell = CELLS[layer.cell]
    x = numbers(sum(layer.sizes) or layer.steps * layer.batch, layer.inputs)
    walk, weights = _walk(layer, len(x)), _weights(layer)
    widths = (layer.projected or layer.hidden, layer.hidden)[: len(cell.states)]
    state = tuple(numbers(layer.batch, width) for width in widths)
    leaves = {"x": x} | {f"{name[0]}_{name[-2:]}": weight for name, weight in weights.items()}
    leaves |= dict(zip(("h0", "c0"), state, strict=False))
    for leaf in leaves.values():
        leaf.requires_grad_()
    h, last = Reference().layer(cell, walk, x, state, weights)
    given = dict(zip(("d_h", "d_h_last", "d_c_last"), (numbers(*t.shape) for t in (h, *last)), strict=False))
    found = dict(zip(("h", "h_last", "c_last"), (h, *last), strict=False))
    loss = sum((found[name] * given[f"d_{name}"]).sum() for name in found)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    d_leaves = {f"d_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return _order(walk) | leaves | given | found | d_leaves


def _order(walk: Walk) -> dict[str, torch.Tensor]:
    """Return the tensors that say which rows there are, and which begin from zero, in the order of the walk."""
    order = {"offsets": walk.offsets, "reset": None if walk.cut is None else walk.cut.long()}
    return {name: tensor for name, tensor in order.items() if tensor is not None}


def text() -> str:
    """Return the whole file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return "".join(map(_lines, LAYERS, LAYERS.values()))


def _lines(name: str, layer: Layer) -> str:
    lines = [f"case {name} {' '.join(map(str, layer[:7]))}"]
    for tensor, values in tensors(layer).items():
        shown = " ".join(f"{v:.13g}" for v in values.detach().flatten().tolist())
        lines.append(f"{tensor} {values.numel()} {shown}")
    return "\n".join([*lines, "end\n"])


if __name__ == "__main__":
    CASES.write_text(text())
