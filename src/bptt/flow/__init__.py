"""Seeing the gradient: what travels back through time in the user's own model, measured, judged and drawn.

Nothing here is shared with `bptt.gradient` or with the kernels' backward: an independent witness, which rests on the cells'
equations and partial derivatives alone.
"""

from bptt.flow.lookback import Truncation
from bptt.flow.lyapunov import Lyapunov, lyapunov
from bptt.flow.products import Products, products
from bptt.flow.profile import LayerFlow
from bptt.flow.terms import GradientMap, gradient_map
from bptt.flow.verdict import Finding, Remedy
from bptt.flow.watch import Flow, watch

__all__ = [
    "Finding",
    "Flow",
    "GradientMap",
    "LayerFlow",
    "Lyapunov",
    "Products",
    "Remedy",
    "Truncation",
    "gradient_map",
    "lyapunov",
    "products",
    "watch",
]
