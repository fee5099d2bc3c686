"""How torch's recorders see a layer: torch.fx.symbolic_trace as one node, torch.jit.trace without warnings of its checks."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx import Proxy

from bptt.forms import Hidden, Input
from bptt.torch_private import has_forward_hooks


def is_recorded(input: Input, hx: Hidden | None) -> bool:
    """Whether torch.fx.symbolic_trace is recording the call: then an argument stands for a tensor of a later call."""
    return _first_proxy(input, hx) is not None


def as_one_node(layer: nn.Module, input: Any, hx: Any, reset: Any) -> Any:
    """Record a call of `layer` as one node of torch.fx's graph, as for one of torch.nn's layers, and return its proxy.

    Raises RuntimeError if the layer has hooks: they are recorded by now, and the node would run them once more.
    """
    if has_forward_hooks(layer):
        raise RuntimeError(
            f"torch.fx got bptt.{type(layer).__name__} with hooks, which it would both record and run: "
            "call bptt.unfuse(model) first, or take the hooks off"
        )
    arguments = (input,) if hx is None else (input, hx)
    keywords = {} if reset is None else {"reset": reset}
    tracer: Any = _first_proxy(input, hx).tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), arguments, keywords)


def _first_proxy(input: Any, hx: Any) -> Any:
    for value in (input, *hx) if isinstance(hx, (tuple, list)) else (input, hx):  # at every call: any() would cost more
        if isinstance(value, Proxy):
            return value
    return None


@contextmanager
def unrecorded_checks() -> Iterator[None]:
    """Inside, torch.jit.trace does not warn that comparisons of sizes are not recorded: a check changes no result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield
