"""The loop over time, in several kernels with equal results."""

from bptt.kernels.base import Kernel, Sequences, Stack
from bptt.kernels.choose import BACKENDS, choose, fallback
from bptt.kernels.tape import lean_tape

__all__ = ["BACKENDS", "Kernel", "Sequences", "Stack", "choose", "fallback", "lean_tape"]
