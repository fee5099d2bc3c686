"""Backpropagation through time for PyTorch: right, fast, within a memory budget, and visible."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bptt import cells as cells
    from bptt import explaining as explaining
    from bptt import flow as flow
    from bptt import gradient as gradient
    from bptt import kernels as kernels
    from bptt import layers as layers
    from bptt import network as network
    from bptt.cells import Cell as Cell
    from bptt.cells import PointwiseCell as PointwiseCell
    from bptt.explaining.own import explain as explain
    from bptt.flow import Flow as Flow
    from bptt.flow import GradientMap as GradientMap
    from bptt.flow import Lyapunov as Lyapunov
    from bptt.flow import Products as Products
    from bptt.flow import gradient_map as gradient_map
    from bptt.flow import lyapunov as lyapunov
    from bptt.flow import products as products
    from bptt.flow import watch as watch
    from bptt.fusing import fuse as fuse
    from bptt.fusing import unfuse as unfuse
    from bptt.gradient import RTRL as RTRL
    from bptt.gradient import Checkpointed as Checkpointed
    from bptt.gradient import Exact as Exact
    from bptt.gradient import Result as Result
    from bptt.gradient import SnAp1 as SnAp1
    from bptt.gradient import Strategy as Strategy
    from bptt.gradient import Truncated as Truncated
    from bptt.gradient import backward as backward
    from bptt.layers import GRU as GRU
    from bptt.layers import LSTM as LSTM
    from bptt.layers import RNN as RNN
    from bptt.layers import Recurrent as Recurrent
    from bptt.network import Network as Network

__version__ = "0.1.0"

# Where each public name lives. They are imported on first use, so that `bptt --help` need not wait for torch.
# No module here has the name of a function: importing one sets it as an attribute of this package, in the function's place.
_MODULES = ("cells", "explaining", "flow", "gradient", "kernels", "layers", "network")
_HOMES = {
    "Cell": "bptt.cells",
    "PointwiseCell": "bptt.cells",
    "RNN": "bptt.layers",
    "GRU": "bptt.layers",
    "LSTM": "bptt.layers",
    "Recurrent": "bptt.layers",
    "fuse": "bptt.fusing",
    "unfuse": "bptt.fusing",
    "Network": "bptt.network",
    "watch": "bptt.flow",
    "Flow": "bptt.flow",
    "backward": "bptt.gradient",
    "Checkpointed": "bptt.gradient",
    "Exact": "bptt.gradient",
    "Truncated": "bptt.gradient",
    "RTRL": "bptt.gradient",
    "SnAp1": "bptt.gradient",
    "Strategy": "bptt.gradient",
    "Result": "bptt.gradient",
    "gradient_map": "bptt.flow",
    "GradientMap": "bptt.flow",
    "products": "bptt.flow",
    "Products": "bptt.flow",
    "lyapunov": "bptt.flow",
    "explain": "bptt.explaining.own",
    "Lyapunov": "bptt.flow",
}
__all__ = [*_HOMES, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"bptt.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'bptt' has no attribute '{name}'; public names: {', '.join(sorted(_HOMES))}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
