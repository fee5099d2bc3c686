"""Every private part of torch that bptt uses, looked up once, with a fallback for a torch that has not got it.

No other file may name a private part of torch (a test holds that), so this one tells what a new version of torch can break.
A fallback never makes a gradient wrong. Where a question can no longer be answered ("is torch.func active?"), the answer is
the cautious one, so that torch's own operators or the plain loop run instead of a fused kernel: slower, and right.

`missing` names the parts that this torch has not got. The environment variable `BPTT_TORCH_WITHOUT` names parts, separated
by commas, that are taken to be missing, or "all" of them: for the tests.
"""

import contextlib
import ctypes
import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

missing: set[str] = set()

_NOTHING = object()
_WITHOUT = frozenset(os.environ.get("BPTT_TORCH_WITHOUT", "").split(","))


def _is_hidden(path: str) -> bool:
    """Whether a part is to be taken for missing."""
    hidden = "all" in _WITHOUT or path in _WITHOUT
    if hidden:
        missing.add(path)
    return hidden


def _find(path: str, fallback: Any) -> Any:
    """The part of torch at a dotted path below `torch`, such as "_C._get_tracing_state"; `fallback` if there is none."""
    if _is_hidden(path):
        return fallback
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name, _NOTHING)
        if found is _NOTHING:
            missing.add(path)
            return fallback
    return found


def _attribute(owner: Any, name: str) -> str:
    """The name of an attribute of a tensor or a module; a name that nothing has, if `owner` lacks it."""
    path = f"{type(owner).__name__}.{name}"
    if not _is_hidden(path) and hasattr(owner, name):
        return name
    missing.add(path)
    return "a part that torch has not got"


# Which of torch's modes is active -------------------------------------------------------------------------------------
# The first functions are bound as they are: they run at every call of a layer, and torch.compile knows them.


def _yes(*_: Any) -> bool:
    return True


# Whether torch.func (vmap, grad, jvp, …) is active. Fallback: yes.
transforms_active: Callable[[], bool] = _find("_C._are_functorch_transforms_active", _yes)
# Whether autocast is active for any device; torch.is_autocast_enabled(device) asks for one. Fallback: yes, ask for one.
any_autocast_active: Callable[[], bool] = _find("_C._is_any_autocast_enabled", _yes)
# Whether a gradient is many in one, of torch.autograd.grad(is_grads_batched=True). Fallback: yes.
is_batched_gradient: Callable[[Tensor], bool] = _find("_C._functorch.is_legacy_batchedtensor", _yes)
# The depth of the stack of dispatch modes. Fallback: not empty.
dispatch_modes: Callable[[], int] = _find("_C._len_torch_dispatch_stack", lambda: 1)
# What a finished torch.func has wrapped, without the wrapper. Fallback: the tensor itself.
unwrap_if_dead: Callable[[Tensor], Tensor] = _find("_C._functorch.unwrap_if_dead", lambda tensor: tensor)

_tracing_state = _find("_C._get_tracing_state", None)
if _tracing_state is None:

    def is_traced() -> bool:
        """Whether torch.jit.trace is recording."""
        return bool(torch.jit.is_tracing())  # type: ignore[attr-defined]
else:

    def is_traced() -> bool:
        """Whether torch.jit.trace is recording."""
        return _tracing_state() is not None


if _find("autograd.forward_ad._current_level", None) is None:

    def forward_mode_active() -> bool:
        """Whether forward-mode differentiation is active. Without torch's level: yes."""
        return True
else:

    def forward_mode_active() -> bool:
        """Whether forward-mode differentiation is active."""
        return torch.autograd.forward_ad._current_level >= 0


def only_first_derivatives() -> bool:
    """Whether first derivatives alone can be asked for: no vmap, no forward mode, no derivative of a derivative.

    Without torch's stack of transforms: only if torch.func is not active at all.
    """
    if forward_mode_active():
        return False
    if not transforms_active():
        return True
    if torch.compiler.is_compiling():  # which cannot ask for more
        return False
    interpreters = _find("_C._functorch.get_interpreter_stack", None)
    kinds = _find("_C._functorch.TransformType", None)
    if interpreters is None or kinds is None:
        return False
    return [transform.key() for transform in interpreters() or []] == [kinds.Grad]


_top_hooks = _find("_C._autograd._top_saved_tensors_default_hooks", None)


def saved_tensors_hooks_active() -> bool:
    """Whether hooks may replace saved tensors (saved_tensors_hooks, checkpoint). Without torch's answer: yes."""
    return _top_hooks is None or _top_hooks(True) is not None


# Trees and operators --------------------------------------------------------------------------------------------------


def _children(tree: Any, is_leaf: Callable[[Any], bool] | None) -> list[Any] | None:
    """The parts of a tuple, list or dict; None for a leaf."""
    if (is_leaf is not None and is_leaf(tree)) or not isinstance(tree, tuple | list | dict):
        return None
    return list(tree.values()) if isinstance(tree, dict) else list(tree)


def _with_children(tree: Any, children: list[Any]) -> Any:
    if isinstance(tree, dict):
        return type(tree)(zip(tree, children, strict=True))
    return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)


class _Structure:
    """The form of a tree of tuples, lists and dicts, for a torch without `torch.utils._pytree`."""

    def __init__(self, tree: Any) -> None:
        self._tree = _map(lambda _: 0, tree)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Structure) and self._tree == other._tree

    __hash__ = None  # type: ignore[assignment]

    def unflatten(self, leaves: Any) -> Any:
        """Return the tree of this form with the given leaves."""
        left = iter(leaves)
        return _map(lambda _: next(left), self._tree)


def _map(function: Callable[..., Any], tree: Any, *others: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    children = _children(tree, is_leaf)
    if children is None:
        return function(tree, *others)
    columns = zip(children, *(_children(other, is_leaf) or [] for other in others), strict=True)
    return _with_children(tree, [_map(function, *column, is_leaf=is_leaf) for column in columns])


def _leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[Any]:
    found: list[Any] = []
    _map(found.append, tree, is_leaf=is_leaf)
    return found


with contextlib.suppress(ImportError):
    import torch.utils._pytree  # bound below, if it is there

tree_map: Callable[..., Any] = _find("utils._pytree.tree_map", _map)
tree_leaves: Callable[..., list[Any]] = _find("utils._pytree.tree_leaves", _leaves)
tree_flatten: Callable[..., tuple[list[Any], Any]] = _find(
    "utils._pytree.tree_flatten", lambda tree: (_leaves(tree), _Structure(tree))
)


class _BlindMode:
    """Stands for a dispatch mode in a torch that has none: it sees no operator."""

    def __enter__(self) -> "_BlindMode":
        return self

    def __exit__(self, *_: object) -> None:
        pass


with contextlib.suppress(ImportError):
    import torch.utils._python_dispatch

# Whether a TorchDispatchMode (fake tensors, make_fx, …) is active. Fallback: by the depth of their stack.
is_dispatch_mode_active: Callable[[], bool] = _find(
    "utils._python_dispatch.is_in_torch_dispatch_mode", lambda: dispatch_modes() > 0
)
# The base class of dispatch modes. Fallback: one that sees no operator.
DispatchMode: Any = _find("utils._python_dispatch.TorchDispatchMode", _BlindMode)
# Suspends the dispatch modes of the caller. Fallback: leaves them active.
dispatch_modes_suspended: Callable[[], Any] = _find(
    "utils._python_dispatch._disable_current_modes", contextlib.nullcontext
)


_SCHEMA = _attribute(torch.ops.aten.add.Tensor, "_schema")


def is_mutable(operator: Any) -> bool:
    """Whether an operator writes to an argument. Raises AttributeError without torch's schema."""
    return bool(getattr(operator, _SCHEMA).is_mutable)


def argument_names(operator: Any) -> list[str]:
    """Return the names of an operator's arguments. Raises AttributeError without torch's schema."""
    return [argument.name for argument in getattr(operator, _SCHEMA).arguments]


def recurrent_operator(name: str) -> Any:
    """Return torch's operator "rnn_tanh", "rnn_relu", "gru" or "lstm"; None if there is none."""
    return _find(name, None) or _find(f"_VF.{name}", None)


# Tensors and autograd -------------------------------------------------------------------------------------------------

_tensor = torch.empty(0, device="cpu")
_IS_ZERO, _HOOKS = _attribute(_tensor, "_is_zerotensor"), _attribute(_tensor, "_backward_hooks")
_LATE_HOOKS = _attribute(_tensor, "_post_accumulate_grad_hooks")
COUNTS_CHANGES = _find("Tensor._version", None) is not None


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; 0 in a torch that does not count (`COUNTS_CHANGES`)."""
    return tensor._version if COUNTS_CHANGES else 0


def is_zero_tensor(tensor: Tensor) -> bool:
    """Whether a tensor is all zeros without memory, as torch.func makes them. Without torch's answer: no."""
    return bool(getattr(tensor, _IS_ZERO, bool)())


def hooks_of(tensor: Tensor) -> Any:
    """Return the dict of the functions that `register_hook` attached to a tensor; None if there are none.

    In a torch that keeps them elsewhere None: they then also see the gradients of the pieces of a call.
    """
    return getattr(tensor, _HOOKS, None)


def has_hooks(tensor: Tensor) -> bool:
    """Whether hooks run when a tensor gets its gradient, or after it was accumulated."""
    return bool(hooks_of(tensor) or getattr(tensor, _LATE_HOOKS, None))


@functools.cache
def accumulate_grad() -> Any:
    """Return the class of the nodes in which autograd accumulates `.grad` of a leaf."""
    found = _find("_C._functions.AccumulateGrad", None)
    if found is None:
        leaf = torch.empty(0, device="cpu", requires_grad=True)
        found = type(torch.autograd.graph.get_gradient_edge(leaf).node)
    return found


_task_id = _find("_C._current_graph_task_id", None)


def backward_pass_id() -> int:
    """Return a number of the backward pass that is running; 0 for all of them in a torch that does not number them."""
    return 0 if _task_id is None else int(_task_id())


# Modules --------------------------------------------------------------------------------------------------------------

# The base class of torch's layers that take means over the batch. Fallback: those of them that torch.nn has.
BatchNorm: Any = _find(
    "nn.modules.batchnorm._BatchNorm", (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
)

_module = nn.Module()
_CHILDREN, _BUFFERS = _attribute(_module, "_modules"), _attribute(_module, "_buffers")
_BEFORE, _AFTER = _attribute(_module, "_forward_pre_hooks"), _attribute(_module, "_forward_hooks")
_HAS_FLAT = _find("nn.RNNBase._update_flat_weights", None) is not None

if _attribute(_module, "_parameters") == "_parameters":

    def own_parameters(module: nn.Module) -> dict[str, Any]:
        """Return the parameters of a module itself by name, without those of its children."""
        return module._parameters
else:

    def own_parameters(module: nn.Module) -> dict[str, Any]:
        """Return the parameters of a module itself by name, without those of its children."""
        return dict(module.named_parameters(recurse=False, remove_duplicate=False))


def own_children(module: nn.Module) -> dict[str, nn.Module]:
    """Return the children of a module by name, one that has several names under each of them."""
    own = getattr(module, _CHILDREN, None)
    named = module.named_children() if own is None else own.items()
    return {name: child for name, child in named if child is not None}


def own_names(module: nn.Module) -> set[str]:
    """Return the names of all that a module object itself holds: attributes, parameters, buffers, children."""
    buffers = getattr(module, _BUFFERS, None)
    if buffers is None:
        buffers = dict(module.named_buffers(recurse=False))
    return {*vars(module), *own_parameters(module), *buffers, *own_children(module)}


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether functions run before or after a module's forward. Without torch's tables: no."""
    return bool(getattr(module, _BEFORE, None) or getattr(module, _AFTER, None))


def flat_weights(layer: nn.RNNBase) -> list[Tensor | None] | None:
    """Return the list of tensors by which one of torch.nn's layers runs; None in a torch without such a list."""
    return layer._flat_weights if _HAS_FLAT else None


def flat_weight_names(layer: nn.RNNBase) -> list[str]:
    """Return the names of the tensors of `flat_weights`; without them, those of the layer's parameters."""
    return layer._flat_weights_names if _HAS_FLAT else list(own_parameters(layer))


def update_flat_weights(layer: nn.RNNBase) -> None:
    """Make `flat_weights` those that the layer's attributes are now."""
    layer._update_flat_weights()


def compiler_loaded() -> bool:
    """Whether torch.compile's compiler was imported, as it is by the first call."""
    return "torch._dynamo" in sys.modules


def leave_to_eager(code: CodeType) -> None:
    """Have torch.compile leave a function alone, with all that it calls. Otherwise more is compiled, and nothing wrong."""
    if _is_hidden("_C._dynamo.eval_frame"):
        return
    with contextlib.suppress(ImportError):
        from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy

        set_code_exec_strategy(code, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP))


# Memory and threads ---------------------------------------------------------------------------------------------------


def recorded_allocations(run: Callable[[], Any]) -> list[int] | None:
    """Run, and return the bytes in use on the CPU after each block that torch's allocator handed out or got back.

    None, without a run, where that cannot be recorded: in a torch without this profiler, or while the user's own is on.
    """
    autograd = _find("_C._autograd", None)
    config = _profiler_config()
    is_on = getattr(autograd, "_profiler_enabled", _yes)
    enable, disable = (getattr(autograd, f"_{verb}_profiler_legacy", None) for verb in ("enable", "disable"))
    if config is None or enable is None or disable is None or is_on():
        return None
    with _no_garbage_collection():  # what others left would be freed at any time
        enable(config)
        try:
            run()
        finally:
            records = disable()
    events = (event for thread in records for event in thread)
    sizes = (event.cpu_memory_usage() for event in events if event.kind() == "memory_alloc")
    return list(accumulate(sizes, initial=0))


def _profiler_config() -> Any:
    """The configuration with which torch's profiler records memory; None if there is none of that form."""
    if _is_hidden("_C._profiler"):
        return None
    try:
        from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig

        return ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig())
    except (ImportError, TypeError):
        return None


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def parallel_for_address() -> ctypes.c_void_p | None:
    """Return the address of the C function by which torch's thread pool runs a loop; None in a torch without it."""
    if _is_hidden("torch_parallel_for"):
        return None
    try:
        name = "libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so"  # macOS is untested
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
        return ctypes.cast(library.torch_parallel_for, ctypes.c_void_p)
    except (OSError, AttributeError):
        return None
