"""Seeing how the gradient flows: the terms (t, k), the Jacobian products, Lyapunov exponents."""

from bptt.flow.lyapunov import Lyapunov, lyapunov
from bptt.flow.products import Products, products
from bptt.flow.terms import GradientMap, gradient_map

__all__ = ["GradientMap", "Lyapunov", "Products", "gradient_map", "lyapunov", "products"]
