"""The step's derivatives of the cells that we know, from the states and as few passes over memory as they need.

The slow twin is `cell.partials`; a test compares them. A class derived from one of these cells has its own equations, so
types are compared, not `isinstance`. An Elman cell's slope follows from its output, so its net input is not needed; the
others work in place on a chunk that stays in the cache. Tables of derivatives: `bptt.cells`.

A trap: tanh z = 2σ(2z) − 1 takes a sixth of the time, but its absolute error of 1e-7 is larger than the states of a network
that starts near 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bptt.cells import GRU, Elman, Partials, PointwiseCell, State


def elman(cell: Elman, h: Tensor) -> Partials:
    """φ' from h = φ(z): 1 − h², [h > 0] or h (1 − h)."""
    match cell.nonlinearity:
        case "tanh":
            slope = torch.addcmul(h.new_ones(()), h, h, value=-1)
        case "relu":
            slope = (h > 0).to(h.dtype)
        case "sigmoid":
            slope = torch.addcmul(h, h, h, value=-1)
    slope = slope.unsqueeze(-2)
    return Partials(zx=(slope,), zh=(slope,), direct=((None,),))


def gru(zx: Tensor, zh: Tensor, before: Tensor) -> Partials:
    """The table of `bptt.cells.GRU`; zx and zh [n, 3, H] are overwritten."""
    both = zx[:, :2].add_(zh[:, :2]).sigmoid_()
    r, z = both[:, 0], both[:, 1]
    zh_n = zh[:, 2]
    n = zx[:, 2].addcmul_(r, zh_n).tanh_()
    d_zx = torch.empty_like(zx)
    a = d_zx[:, 2]
    torch.addcmul(n.new_ones(()), n, n, value=-1, out=a)
    rest = 1 - z
    a.mul_(rest)
    torch.mul(before - n, z, out=d_zx[:, 1]).mul_(rest)
    torch.mul(zh_n, a, out=d_zx[:, 0]).mul_(r)
    d_zx[:, 0].addcmul_(d_zx[:, 0], r, value=-1)
    d_zh = d_zx.clone()
    d_zh[:, 2].mul_(r)
    return Partials(zx=(d_zx,), zh=(d_zh,), direct=((z,),))


class LstmStep(NamedTuple):
    """An LSTM step's derivatives, with q = ∂h/∂c apart: D.zh[h] = [q ∘ by_c, by_o], D.zh[c] = [by_c, 0].

    Attributes:
        q: o (1 − tanh² c)                                          [n, H]
        by: g i(1 − i), c_{t-1} f(1 − f), i (1 − g²) of c, and tanh(c) o(1 − o) of h   [n, 4, H]
        f: ∂c_t/∂c_{t-1}                                            [n, H]
    """

    q: Tensor
    by: Tensor
    f: Tensor


def lstm_gates_(net: Tensor) -> Tensor:
    """The gates i, f, g, o from their net inputs [n, 4, H], in place."""
    net[:, :2].sigmoid_()
    net[:, 2].tanh_()
    net[:, 3].sigmoid_()
    return net


def lstm(gates: Tensor, c: Tensor, before: Tensor) -> LstmStep:
    """The table of `bptt.cells.LSTM`, from the gates [n, 4, H], c_t and c_{t-1}."""
    i, f, g, o = gates.unbind(1)
    by = torch.addcmul(gates, gates, gates, value=-1)  # s (1 − s) for the three that are logistic
    torch.addcmul(g.new_ones(()), g, g, value=-1, out=by[:, 2])
    tanh_c = torch.tanh(c)
    by[:, 0].mul_(g)
    by[:, 1].mul_(before)
    by[:, 2].mul_(i)
    by[:, 3].mul_(tanh_c)
    q = tanh_c.mul_(tanh_c).neg_().add_(1).mul_(o)
    return LstmStep(q, by, f)


def partials(cell: PointwiseCell, zx: Tensor, zh: Tensor, before: State, vectors: State) -> Partials:
    """Return `cell.partials`, by a faster formula where there is one; zx and zh may be overwritten."""
    return gru(zx, zh, before[0]) if type(cell) is GRU else cell.partials(zx, zh, before, *vectors)
