"""Seeing the gradient: what travels back through time in the user's own model, measured, judged and drawn.

Nothing here is shared with `bptt.gradient` or with the kernels' backward: an independent witness, which rests on the cells'
equations and partial derivatives alone.
"""

from bptt.flow.jacobians.gradient_map import GradientMap, gradient_map
from bptt.flow.jacobians.lyapunov import Lyapunov, lyapunov
from bptt.flow.jacobians.products import Products, products
from bptt.flow.watch import Flow, watch
from bptt.flow.watching.diagnosis import Finding, Remedy
from bptt.flow.watching.profile import LayerFlow
from bptt.flow.watching.truncation import Truncation

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
