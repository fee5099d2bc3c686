"""The hooks around the user's own forward and backward, and what they keep."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bptt.cells import Cell
from bptt.flow.watching.call import Unsupported, WatchedCall
from bptt.flow.watching.observe import observe
from bptt.flow.watching.replay import draws_masks
from bptt.kernels.tape import hide_tapes, show_tapes, take_tapes
from bptt.layers import find_cell

P = ParamSpec("P")

_WHY_NOT_FOLLOWED = {
    False: "its state was computed again on the way, not just copied, masked or reordered: each call is judged for itself",
    True: "the state of a bidirectional layer ends at both ends of a call, so each call is judged for itself",
}


class Hooks:
    """The hooks on a model's recurrent layers, on its parameters and on the optimizers.

    Attributes:
        calls: the calls since they were last taken, in their order.
        called: whether a recurrent layer was called since the hooks were attached.
    """

    def __init__(self, model: nn.Module, note: Callable[[str], None], say: Callable[[str], None]) -> None:
        """`note` takes what cannot be watched, `say` what went wrong, both as a sentence without a subject."""
        self.model, self._note, self._say = model, note, say
        self.calls: list[WatchedCall] = []
        self.called = False
        self._of_module: dict[int, list[WatchedCall]] = {}
        self._norms: dict[int, Tensor] = {}
        self._handles: list[Any] = []
        self._rng: dict[int, Tensor] = {}
        self._watched: frozenset[int] = frozenset()

    def attach(self, before_update: Callable[..., Any]) -> None:
        """Attach the hooks; `before_update` becomes a hook before every optimizer's step."""
        self.called = False
        show_tapes()
        found = [(module, cell) for module in self.model.modules() if (cell := find_cell(module)) is not None]
        self._note_what_is_not_seen(bool(found))
        self._watched = frozenset(id(module) for module, _ in found)
        begin = self._guarded(self._begin)  # here, not at each call: torch.compile cannot trace how it is made
        for module, cell in found:
            self._handles.append(module.register_forward_pre_hook(begin))
            self._handles.append(module.register_forward_hook(self._after(cell), with_kwargs=True))
        if found:
            for parameter in self.model.parameters():
                if parameter.requires_grad and parameter.is_leaf:
                    self._handles.append(parameter.register_post_accumulate_grad_hook(self._take_norm))
            self._handles.append(register_optimizer_step_pre_hook(before_update))

    def detach(self) -> None:
        """Remove all hooks; what they have kept stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        hide_tapes()

    def take(self) -> tuple[list[WatchedCall], list[Tensor]]:
        """Hand over the calls since the last time, and the norm of each parameter's gradient; forget both."""
        calls, norms = self.calls, list(self._norms.values())
        self.calls, self._of_module, self._norms = [], {}, {}
        return calls, norms

    def names(self) -> dict[int, str]:
        """Return what each module is called in the model, by id; the model itself by its class."""
        return {id(m): name or type(m).__name__.lower() for name, m in self.model.named_modules()}

    def note_not_seen(self, module: nn.Module, reason: Unsupported) -> None:
        """Note why a module is not watched."""
        self._note(f"does not see {self.names()[id(module)]}: {reason}")

    def _note_what_is_not_seen(self, any_layer: bool) -> None:
        if hasattr(self.model, "_orig_mod"):
            self._note("a compiled model runs code that no hook sees: watch the module that torch.compile was given")
        if not any_layer:
            self._note("found no recurrent layer (torch.nn.RNN, GRU, LSTM, bptt's, bptt.Recurrent) in the model")
        if any(isinstance(m, nn.RNNCellBase) for m in self.model.modules()):
            self._note("does not see torch.nn's single cells (RNNCell, GRUCell, LSTMCell): use the layers")

    def _guarded(self, function: Callable[P, None]) -> Callable[P, None]:
        """`function`, but whatever goes wrong in it becomes a warning: the user's training goes on."""

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            if torch.compiler.is_compiling():
                return
            try:
                function(*args, **kwargs)
            except Exception as error:
                self._say(f"failed in {function.__name__} and sees nothing of it: {type(error).__name__}: {error}")

        return run

    def _begin(self, module: nn.Module, args: Any) -> None:
        take_tapes()  # of layers that are not watched
        if draws_masks(module):
            self._rng[id(module)] = torch.get_rng_state()

    def _after(self, cell: Cell) -> Callable[..., None]:
        keep = self._guarded(self._keep)

        def hook(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            keep(module, cell, args, kwargs, result)

        return hook

    def _keep(self, module: nn.Module, cell: Cell, args: Any, kwargs: Any, result: Any) -> None:
        tapes = take_tapes()
        if id(module) not in self._watched:
            return  # a copy, made while the hooks were there
        self.called = True
        if not torch.is_grad_enabled():
            return
        earlier = self._of_module.setdefault(id(module), [])
        try:
            call = observe(module, cell, args, kwargs, result, earlier)
        except Unsupported as reason:
            self.note_not_seen(module, reason)
            return
        call.tapes = tapes
        call.rng = self._rng.get(id(module)) if draws_masks(module) else None
        self.calls.append(call)
        earlier.append(call)
        if call.unfollowable:
            why = _WHY_NOT_FOLLOWED[bool(module.bidirectional)]
            self._note(f"does not follow {self.names()[id(module)]} from call to call: {why}")

    def _take_norm(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._norms[id(parameter)] = parameter.grad.detach().norm()
