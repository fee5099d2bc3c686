"""One time step each: equation, shapes, derivative, Jacobian, source."""

from bptt.cells.base import Cell, Partials, PointwiseCell, State, Weights, draw_uniform
from bptt.cells.elman import Elman
from bptt.cells.gru import GRU
from bptt.cells.lstm import LSTM

__all__ = ["GRU", "LSTM", "Cell", "Elman", "Partials", "PointwiseCell", "State", "Weights", "draw_uniform"]
