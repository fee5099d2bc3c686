"""Which kernel runs, or why not."""

from bptt.kernels.aten import Aten
from bptt.kernels.base import Kernel, Sequences, Stack
from bptt.kernels.cpu import Cpu
from bptt.kernels.reference import Reference

_FASTEST_FIRST: tuple[Kernel, ...] = (Cpu(), Aten(), Reference())
BACKENDS = ("auto", *(kernel.name for kernel in _FASTEST_FIRST))


def choose(backend: str, stack: Stack, sequences: Sequences) -> Kernel:
    """The fastest kernel that can run `stack` over `sequences`; or the one that `backend` insists on.

    Raises RuntimeError, with the reason, if the one insisted on refuses.
    """
    for kernel in _FASTEST_FIRST:
        if backend not in ("auto", kernel.name):
            continue
        reason = kernel.refusal(stack, sequences)
        if reason is None:
            return kernel
        if backend != "auto":
            raise RuntimeError(f"backend='{backend}' cannot run this layer: {reason}: pass backend='auto'")
    raise AssertionError("the reference kernel refuses nothing")
