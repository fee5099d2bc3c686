"""Seeing how the gradient flows: the terms (t, k), the Jacobian products, Lyapunov exponents."""

from bptt.flow.terms import GradientMap, gradient_map

__all__ = ["GradientMap", "gradient_map"]
