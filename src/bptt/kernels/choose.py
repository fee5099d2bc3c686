"""Which kernel runs, and why a faster one does not."""

import functools

from bptt.cells import State
from bptt.kernels.aten import Aten
from bptt.kernels.base import Kernel, Sequences, Stack
from bptt.kernels.cpu import NOT_BUILT, Cpu
from bptt.kernels.reference import Reference
from bptt.warning import warn

_FASTEST_FIRST: tuple[Kernel, ...] = (Cpu(), Aten(), Reference())
BACKENDS = ("auto", *(kernel.name for kernel in _FASTEST_FIRST))


def choose(backend: str, stack: Stack, sequences: Sequences, state: State = ()) -> Kernel:
    """Return the fastest kernel that can run `stack` over `sequences` from `state`, or the one that `backend` names.

    Raises RuntimeError, with the reason, if the one named refuses.
    """
    for kernel in _FASTEST_FIRST:
        if backend not in ("auto", kernel.name):
            continue
        reason = kernel.refusal(stack, sequences, state)
        if reason is None:
            return kernel
        if backend != "auto":
            raise RuntimeError(f"backend='{backend}' cannot run this layer: {reason}: pass backend='auto'")
        if isinstance(kernel, Cpu) and reason == NOT_BUILT:
            _say_that_it_was_not_built()
    raise AssertionError("the reference kernel refuses nothing")


def fallback(stack: Stack, sequences: Sequences) -> str | None:
    """Return None if the fastest kernel would run; else which one would, and why each faster one would not."""
    reasons: list[str] = []
    for kernel in _FASTEST_FIRST:
        reason = kernel.refusal(stack, sequences)
        if reason is None:
            return f"backend {kernel.name} ({'; '.join(reasons)})" if reasons else None
        reasons.append(f"{kernel.name}: {reason}")
    raise AssertionError("the reference kernel refuses nothing")


@functools.cache
def _say_that_it_was_not_built() -> None:
    warn(
        "bptt runs on torch's own operators (backend aten), since its native core was not built: "
        "install a C++ compiler and reinstall bptt for the fused kernels"
    )
