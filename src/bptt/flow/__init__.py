"""Seeing the gradient: what travels back through time in the user's own model, measured, judged and drawn.

Who is a witness of whom. Nothing here imports `bptt.gradient`, whose answers it checks.

- `jacobians/` sends gradients back by the cells' own equations and partial derivatives, or by autograd over single steps.
  Its `trajectory`, `pullback`, `pointwise`, `by_autograd`, `terms` and `log_svd` use nothing of the kernels, and are
  independent witnesses of their backward pass. The states that they start from are made by `forward`: those of a layer that
  runs on the native core by the core's *forward* pass, so that they are the layer's own to the last bit.
- `tracing/` and `watching/` are no independent witness where the native core serves: they run its backward loop
  (`tracing/backward`, `tracing/reach`), and take the states from the kernels' tapes (`watching/replay`). Their plain loops
  serve everywhere else.

tests/test_imports.py holds this.
"""

from bptt.flow.diagnosis.findings import Finding, Remedy
from bptt.flow.diagnosis.profile import LayerFlow
from bptt.flow.jacobians.gradient_map import GradientMap, gradient_map
from bptt.flow.jacobians.lyapunov import Lyapunov, lyapunov
from bptt.flow.jacobians.products import Products, products
from bptt.flow.tracing.truncation import Truncation
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
