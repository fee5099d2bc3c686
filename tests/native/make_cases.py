"""Write cases.txt: small layers with the outputs and gradients that the float64 reference finds for them.

    python -m tests.native.make_cases

`driver.cpp` runs the native core on these cases where there is no torch: on another processor, or an emulated one.

One case is a line `case NAME cell steps batch inputs hidden projected reverse`, then one line for each tensor, with the
name that it has in problem.h, its number of elements and its elements, then `end`. Inputs are multiples of 1/64, which
float32 holds exactly; the loss is Σ h d_h + Σ h_last d_h_last + Σ c_last d_c_last.
"""

from pathlib import Path

import torch

from bptt.cells import GRU, LSTM, Elman, PointwiseCell
from bptt.kernels.base import Sequences
from bptt.kernels.reference import Reference
from bptt.kernels.walk import Walk

CASES = Path(__file__).with_name("cases.txt")
CELLS: tuple[PointwiseCell, ...] = (
    Elman("tanh"),
    Elman("relu"),
    Elman("sigmoid"),
    GRU(),
    LSTM(),
)  # as problem.h numbers them
# (cell, steps, batch, inputs, hidden, projected, reverse, sizes of a packed batch, rows whose state is reset)
LAYERS = {
    "tanh": (0, 5, 3, 4, 17, 0, 0, None, ()),
    "relu reversed": (1, 5, 2, 3, 9, 0, 1, None, ()),
    "sigmoid packed": (2, 4, 3, 3, 9, 0, 0, (3, 2, 2, 1), ()),
    "gru": (3, 5, 3, 4, 11, 0, 0, None, ()),
    "gru packed, reversed, with resets": (3, 4, 3, 2, 8, 0, 1, (3, 3, 2, 1), (4, 7)),
    "gru of many rows": (3, 3, 9, 2, 5, 0, 0, None, ()),
    "lstm": (4, 5, 3, 4, 11, 0, 0, None, ()),
    "lstm with resets": (4, 4, 2, 3, 8, 0, 0, None, (0, 5)),
    "lstm projected": (4, 4, 3, 3, 9, 5, 0, None, ()),
    "lstm projected, packed, reversed": (4, 4, 3, 2, 6, 3, 1, (3, 2, 2, 1), ()),
}


def numbers(*shape: int) -> torch.Tensor:
    """Random multiples of 1/64 between -1 and 1."""
    return torch.randint(-64, 65, shape).double() / 64


def case(layer: tuple[object, ...]) -> dict[str, torch.Tensor]:
    """The tensors of one case by their names in problem.h, inputs first."""
    cell_number, steps, batch, inputs, hidden, projected, reverse, sizes, resets = layer
    cell, G, P = CELLS[cell_number], CELLS[cell_number].gates, projected or hidden
    counts = torch.tensor(sizes) if sizes else torch.full((steps,), batch)
    rows = int(counts.sum())
    x = numbers(rows, inputs)
    reset = torch.zeros(rows, dtype=torch.bool)
    reset[list(resets)] = True
    walk = Walk.over(Sequences(x, counts, reset if resets else None), bool(reverse))
    shapes = {"weight_ih": (G * hidden, inputs), "weight_hh": (G * hidden, P), "bias_ih": (G * hidden,)}
    shapes |= {"bias_hh": (G * hidden,)} | ({"weight_hr": (P, hidden)} if projected else {})
    weights = {name: numbers(*shape) / 2 for name, shape in shapes.items()}
    state = tuple(numbers(batch, width) for width in (P, hidden)[: len(cell.states)])
    leaves = {"x": x} | {f"w_{n[-2:]}" if n.startswith("w") else f"b_{n[-2:]}": w for n, w in weights.items()}
    leaves |= dict(zip(("h0", "c0"), state, strict=False))
    for leaf in leaves.values():
        leaf.requires_grad_()
    h, last = Reference().layer(cell, walk, x, state, weights)
    d_h, d_last = numbers(*h.shape), tuple(numbers(*s.shape) for s in last)
    loss = (h * d_h).sum() + sum((s * d).sum() for s, d in zip(last, d_last, strict=True))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    found = {"offsets": torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])} if sizes else {}
    found |= {} if walk.cut is None else {"reset": walk.cut.long()}  # in the order of the walk
    found |= leaves | {"d_h": d_h} | {f"d_{s}_last": d for s, d in zip("hc", d_last, strict=False)}
    found |= {"h": h} | {f"{s}_last": v for s, v in zip("hc", last, strict=False)}
    return found | {f"d_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}


def main() -> None:
    """Write the file."""
    torch.manual_seed(0)
    lines = []
    for name, layer in LAYERS.items():
        lines.append(f"case {name.replace(',', '').replace(' ', '-')} {' '.join(map(str, layer[:7]))}")
        for tensor, values in case(layer).items():
            shown = " ".join(f"{v:.13g}" for v in values.detach().flatten().tolist())
            lines.append(f"{tensor} {values.numel()} {shown}")
        lines.append("end")
    CASES.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
