"""Seeing the gradient: what travels back through time in the user's own model, measured, judged and drawn.

Nothing here is shared with `bptt.gradient` or with the kernels' backward: an independent witness, which rests on the cells'
equations and partial derivatives alone.
"""

from bptt.flow.lookback import Truncation
from bptt.flow.profile import LayerFlow
from bptt.flow.verdict import Finding, Remedy
from bptt.flow.watch import Flow, watch

__all__ = ["Finding", "Flow", "LayerFlow", "Remedy", "Truncation", "watch"]
