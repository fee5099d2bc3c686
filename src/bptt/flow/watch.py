"""`bptt.watch`: hooks around the user's own forward and backward, and the profile computed when the block ends."""

import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bptt.flow.jacobians.trajectory import whole
from bptt.flow.watching.call import Call, Unseen, needs_draws
from bptt.flow.watching.diagnosis import Age, Cut, Finding, judge
from bptt.flow.watching.path import join, paths
from bptt.flow.watching.profile import LayerFlow, NonFinite
from bptt.flow.watching.trace import Trace
from bptt.flow.watching.truncation import Link, Truncation, compare, lost
from bptt.kernels.tape import hide_tapes, show_tapes, take_tapes
from bptt.layers import cell_of
from bptt.warning import warn

P = ParamSpec("P")

_WHY_LOST = {
    False: "its state was computed anew on the way, not only copied, masked or reordered, so each call is judged for itself",
    True: "the state of a bidirectional layer ends at both ends of a call, so each call is judged for itself",
}


def watch(model: nn.Module, say: Callable[[str], None] | None = None, updates: int | None = None) -> "Flow":
    """See the gradient travel back through every recurrent layer of `model`, which stays as it is.

        with bptt.watch(model) as flow:
            criterion(model(x), y).backward()
        print(flow.verdict())

    Any module that holds torch.nn's or bptt's recurrent layers: stacked, bidirectional, packed, with dropout between
    layers, batch_first, unbatched, with resets. The gradients that the model gets are the same, bit for bit. The block may
    hold several calls and updates, and the same object several blocks: profiles of δ are then root mean squares over all.
    Costs about one more backward pass, and the memory of the states and their gradients.

    What cannot be watched is said in a warning (or handed to `say`, as a sentence), and training goes on; an exception of
    the block's own code passes through.

    Calls that hand their state on with its graph (a rollout or a decoder, one step a call) are one path through time; where
    the state is detached in between, that is a truncation. Horizon and verdict are over the last 16 watched passes.

    Args:
        model: the model; its recurrent layers are watched.
        say: takes the sentences that would be warnings.
        updates: how many updates the weights have had before, for the verdict: a gradient that hardly reaches back is
            normal in an untrained layer. None if that is not known. Those in the block are counted.

    Raises:
        TypeError: `model` is no torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"watch was given a {type(model).__name__}, wanted a torch.nn.Module: pass the model itself")
    return Flow(model, say or _warn, updates)


def _warn(text: str) -> None:
    try:
        warn(f"bptt.watch {text}")
    except Warning:  # the user's filter turns warnings into errors; an observer must not stop a training run
        print(f"bptt.watch {text}", file=sys.stderr)


class Flow:
    """What was seen; made by `watch`.

    Attributes:
        layers: `LayerFlow` by name ("lstm.l0", "lstm.l0_reverse"), in the order of the first call, bottom layer first.
        norms: norm of the whole model's gradient at each watched update, before any clipping in the block.
        notes: what could not be watched, and why.
    """

    def __init__(self, model: nn.Module, say: Callable[[str], None], updates: int | None = None) -> None:
        self.model, self._say = model, say
        self._age = Age(updates, 0)
        self.layers: dict[str, LayerFlow] = {}
        self.norms: list[float] = []
        self.notes: list[str] = []
        self._calls: list[Call] = []
        self._of_module: dict[int, list[Call]] = {}
        self._stacks: dict[str, list[list[Link]]] = {}
        self._cuts: list[Cut] = []
        self._handles: list[Any] = []
        self._rng: dict[int, Tensor] = {}
        self._squares: dict[int, Tensor] = {}
        self._called = self._settled = False
        self._watched: frozenset[int] = frozenset()
        self._depth = 0

    def __enter__(self) -> "Flow":
        self._depth += 1
        if self._depth > 1:
            return self  # a block within a block of the same object: the outer one sees it all
        self._called = self._settled = False
        show_tapes()
        try:
            self._hook()
        except Exception as error:
            self._unhook()
            self._say(f"could not begin: {type(error).__name__}: {error}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._unhook()
        hide_tapes()
        if kind is None:
            self._settle()
            self._say_what_was_missing()
        self._calls, self._of_module, self._squares = [], {}, {}

    def __getitem__(self, name: str) -> LayerFlow:
        if name not in self.layers:
            raise KeyError(f"no layer {name!r} was watched: there are {', '.join(self.layers) or 'none'}")
        return self.layers[name]

    def __iter__(self) -> Iterator[LayerFlow]:
        return iter(self.layers.values())

    def __repr__(self) -> str:
        return "\n".join([*(str(finding) for finding in self.verdict()), *self.notes]) or "nothing was watched"

    def _repr_html_(self) -> str:
        from bptt.flow.report.html import compact  # jinja2 is loaded when a page is wanted

        return compact(self)

    # What the hooks do.

    def _hook(self) -> None:
        found = [(name, m, cell) for name, m in self.model.named_modules() if (cell := cell_of(m)) is not None]
        if hasattr(self.model, "_orig_mod"):
            self._note("a compiled model runs code that no hook sees: watch the module that torch.compile was given")
        if not found:
            self._note("found no recurrent layer (torch.nn.RNN, GRU, LSTM, bptt's, bptt.Recurrent) in the model")
        if any(isinstance(m, nn.RNNCellBase) for m in self.model.modules()):
            self._note("does not see torch.nn's single cells (RNNCell, GRUCell, LSTMCell): use the layers")
        self._watched = frozenset(id(module) for _, module, _ in found)
        begin = self._guarded(self._begin)  # here, not at each call: torch.compile cannot trace how it is made
        for _, module, cell in found:
            self._handles.append(module.register_forward_pre_hook(begin))
            self._handles.append(module.register_forward_hook(self._after(cell), with_kwargs=True))
        if found:
            for parameter in self.model.parameters():
                if parameter.requires_grad and parameter.is_leaf:
                    self._handles.append(parameter.register_post_accumulate_grad_hook(self._take_norm))
            self._handles.append(register_optimizer_step_pre_hook(self._before_update))

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self._say(text)

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
        if needs_draws(module):
            self._rng[id(module)] = torch.get_rng_state()

    def _after(self, cell: Any) -> Callable[..., None]:
        keep = self._guarded(self._keep)

        def hook(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            keep(module, cell, args, kwargs, result)

        return hook

    def _keep(self, module: nn.Module, cell: Any, args: Any, kwargs: Any, result: Any) -> None:
        tapes = take_tapes()
        if id(module) not in self._watched:
            return  # a copy, made while the hooks were there
        self._called = True
        if not torch.is_grad_enabled():
            return
        try:
            call = Call.of(module, cell, args, kwargs, result, self._of_module.setdefault(id(module), []))
        except Unseen as reason:
            self._does_not_see(module, reason)
            return
        call.tapes = tapes
        state = self._rng.get(id(module))
        call.rng = (state,) if state is not None and needs_draws(module) else ()
        self._calls.append(call)
        self._of_module[id(module)].append(call)
        if call.lost:
            self._note(
                f"does not follow {self._names()[id(module)]} from call to call: {_WHY_LOST[bool(module.bidirectional)]}"
            )

    def _take_norm(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._squares[id(parameter)] = parameter.grad.detach().norm()

    def _before_update(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The weights are about to change: what rests on them is computed now.

        With a closure the backward pass is still to come, perhaps several times with other weights each: then it is computed
        whenever the closure ends. `args` are those of `step`, the optimizer itself among them.
        """
        own = {id(p) for p in self.model.parameters()}
        if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
            return None
        place = next((n for n, value in enumerate(args) if n and callable(value)), None)
        closure = kwargs.get("closure") if place is None else args[place]
        if callable(closure) or any(call.arrived for call in self._calls):  # of several optimizers the first one counts
            self._age = self._age._replace(seen=self._age.seen + 1)
        if not callable(closure):
            self._settle(_loss_scale())
            return None
        if any(call.arrived for call in self._calls):  # else its backward pass may come in the closure
            self._settle()
        watched = self._settling(closure)
        if place is None:
            return args, kwargs | {"closure": watched}
        return (*args[:place], watched, *args[place + 1 :]), kwargs

    def _settling(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """`closure`, after which the weights change."""

        @functools.wraps(closure)
        def watched() -> Any:
            result = closure()
            if self._depth:  # not if it is kept and called after the block
                self._settle()
            return result

        return watched

    # What is computed.

    def _settle(self, scale: float = 1.0) -> None:
        """Compute the profile of the calls kept so far, and forget them. `scale`: what the loss was multiplied with."""
        calls, self._calls, self._of_module = self._calls, [], {}
        squares, self._squares = self._squares, {}
        if not any(call.arrived for call in calls):
            return
        self._settled = True
        try:
            with torch.no_grad(), torch.autocast(_device(calls[0]), enabled=False):
                for call in calls if scale != 1 else ():
                    call.unscale(scale)
                self._settle_calls(calls)
                if squares:  # none where all weights are frozen, or after torch.autograd.grad
                    norms = torch.stack([n.double().cpu() for n in squares.values()])
                    self.norms.append(float(norms.norm()) / scale)
        except Exception as error:
            self._say(f"could not compute the profile: {type(error).__name__}: {error}")

    def _settle_calls(self, calls: list[Call]) -> None:
        names = self._names()
        of_module: dict[str, list[list[Link]]] = {}
        unseen: set[str] = set()
        copies: dict[int, Tensor] = {}
        every = paths(calls)
        self._cuts = list(_cuts(every, names))
        for path in every:
            name = names[id(path[0].module)]
            try:
                of_module.setdefault(name, []).append(join(path, [call.stack(copies) for call in path]))
            except Unseen as reason:
                self._does_not_see(path[0].module, reason)
                unseen.add(name)
        for name, stacks in of_module.items():
            if name in unseen:
                continue
            self._stacks[name] = stacks
            for depth in range(len(stacks[0])):
                for direction in range(len(stacks[0][depth].traces)):
                    self._layer(name, depth, direction, [s[depth].traces[direction] for s in stacks])

    def _names(self) -> dict[int, str]:
        """What each module is called in the model; the model itself by its class."""
        return {id(m): name or type(m).__name__.lower() for name, m in self.model.named_modules()}

    def _does_not_see(self, module: nn.Module, reason: Unseen) -> None:
        self._note(f"does not see {self._names()[id(module)]}: {reason}")

    def _layer(self, module: str, depth: int, direction: int, traces: list[Trace]) -> None:
        name = f"{module}.l{depth}{'_reverse' if direction else ''}"
        if name not in self.layers:
            self.layers[name] = LayerFlow(name, module, depth, direction, traces[0].cell)
        self.layers[name].add(traces)

    def _say_what_was_missing(self) -> None:
        if self._settled or any("no recurrent layer" in n or n.startswith("does not see") for n in self.notes):
            return
        if not self._called:
            self._say("saw no call of a recurrent layer in the block: run the model inside it, not compiled")
        else:
            self._say(
                "saw no gradient arrive at a recurrent layer: call loss.backward() inside the block, without no_grad, on a "
                "loss that depends on the layer's outputs"
            )

    # What the user asks.

    def verdict(self) -> list[Finding]:
        """One or more findings for each layer and direction, each with its evidence and a remedy (see diagnosis.py)."""
        return judge(list(self), self._cuts, self.clip_value(), self._age)

    @property
    def first_non_finite(self) -> NonFinite | None:
        """The first non-finite number of the last pass, in the order of computing: forward from the bottom layer on, then
        gradients from the top layer down; None if all are finite.
        """
        found = [layer.non_finite for layer in self if layer.non_finite is not None]
        forward = [place for place in found if place.what != "gradient"]
        return next(iter(forward or found[::-1]), None)

    def clip_value(self, quantile: float = 0.9) -> float | None:
        """A value for torch.nn.utils.clip_grad_norm_: this quantile of the finite gradient norms that were seen.

        So the usual update passes as it is and the rare large one is shortened (R. Pascanu et al. 2013, section 3.2, take a
        multiple of the average norm; docs/equations.md, eq. (40)). None if none was seen.
        """
        norms = torch.tensor(self.norms, dtype=torch.float64, device="cpu")
        norms = norms[norms.isfinite()]
        return float(norms.quantile(quantile)) if len(norms) else None

    def truncation(self, k: int) -> Truncation:
        """What truncated backpropagation with a lookback of k steps would have lost of the last watched gradient.

        Each loss step sends its gradient back through at most k steps of a module; a loss step is one at whose output, or
        final state, a gradient arrives from outside the module. Exact wherever what lies between the module and the loss
        acts on each step alone. Calls that hand their state on count as one, others each for itself. A bidirectional
        layer counts the steps of each direction and layer for itself. k = 0 keeps what does not travel; with k ≥ T − 1
        nothing is lost. Costs k + 1 passes over the steps.

        Raises ValueError unless k is a whole number ≥ 0, RuntimeError if nothing was watched.
        """
        lookback = whole(k)
        if lookback is None or lookback < 0:
            raise ValueError(f"truncation: k is {k!r}, wanted a whole number of steps, at least 0")
        if not self.layers:
            raise RuntimeError("nothing was watched: run forward and backward inside the block first")
        exact: dict[str, Tensor] = {}
        missing: dict[str, Tensor] = {}
        with torch.no_grad():
            for module, stacks in self._stacks.items():
                for stack in stacks:
                    _add_lost(module, stack, lookback, exact, missing)
        return compare(exact, missing, lookback)

    def to_json(self) -> dict[str, Any]:
        """Everything that was seen, as numbers, lists and names."""
        return {
            "layers": [layer.to_json() for layer in self],
            "norms": [norm if math.isfinite(norm) else None for norm in self.norms],
            "clip_value": self.clip_value(),
            "verdict": [finding.to_json() for finding in self.verdict()],
            "notes": self.notes,
        }

    def plot(self) -> Any:
        """A matplotlib figure: one row for each layer and direction (see plot.py)."""
        from bptt.flow.report.plot import draw  # matplotlib takes a second to load

        return draw(list(self))

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write everything as one HTML file: verdict first, then each layer in charts and figures.

        It needs no network and no script, can be read on a phone and printed. An older file there is replaced, at once or
        not at all. Draws on the last watched pass; the contributions, and what some truncations would lose where that is
        cheap, are computed for it.

        Raises OSError where the file cannot be written.
        """
        from bptt.flow.report.html import write_report

        write_report(self, Path(path))

    def to_tensorboard(self, writer: Any, step: int | None = None, tag: str = "flow") -> None:
        """Add horizon, growth, saturation, … to a torch.utils.tensorboard.SummaryWriter, or to what is like one.

        step: the number of the update, as of the writer's own methods. What the writer has no method for (histograms, the
        figure, text) is left out. Raises TypeError if it has no `add_scalar`.
        """
        from bptt.flow.report.tensorboard import write_board

        write_board(self, writer, step, tag)


def _loss_scale() -> float:
    """What torch.amp.GradScaler has multiplied the loss with, where one is calling `optimizer.step`; else 1."""
    file, frame = inspect.getfile(torch.amp.GradScaler), inspect.currentframe()
    while frame is not None:
        scaler = frame.f_locals.get("self") if frame.f_code.co_filename == file else None
        if isinstance(scaler, torch.amp.GradScaler):
            return scaler.get_scale()
        frame = frame.f_back
    return 1.0


def _device(call: Call) -> str:
    return call.kept[0][1].device.type


def _add_lost(module: str, stack: list[Link], k: int, exact: dict[str, Tensor], missing: dict[str, Tensor]) -> None:
    """Add one call's exact gradients and what is lost of them, by the parameters' names."""
    traces = [trace for link in stack for trace in link.traces]
    for trace, gone in zip(traces, lost(stack, k), strict=True):
        depth = next(i for i, link in enumerate(stack) if trace in link.traces)
        end = f"_l{depth}{'_reverse' if trace.way.reverse else ''}"
        for short in trace.weights:
            name = f"{module}.{short}{end}"
            whole, part = trace.contribution(short), trace.lost(short, gone)
            exact[name] = exact[name] + whole if name in exact else whole
            missing[name] = missing[name] + part if name in missing else part


def _cuts(every: list[list[Call]], names: dict[int, str]) -> Iterator[Cut]:
    """Places where a tensor went on, but its gradient did not come back.

    Between paths of one module: the later began with the earlier's final state, detached. If both gradients came in one
    backward pass, the loss spans the cut; if in different ones, it is truncation on purpose. Between modules: the later's
    input is the earlier's output (the same memory), detached.
    """
    passes = {id(call): set().union(*(c.passes for c in path)) for path in every for call in path}
    for path in every:
        name = names[id(path[0].module)]
        for call in path:
            if call.carried and call.differentiable:
                spans = any(passes[id(earlier)] & passes[id(call)] for earlier in call.follows)
                yield Cut(name, "state" if spans else "truncation", "")
        if path[0].differentiable and not any(call.arrived for call in path):
            others = [c for other in every if other is not path for c in other]
            below = next((c for c in others if any(_reads_detached(c, call) for call in path)), None)
            where = "" if below is None else names[id(below.module)]
            yield Cut(name, "outputs" if below is not None else "none", where)
        weights = path[0].module.parameters()
        if not any(call.differentiable for call in path) and not any(p.requires_grad for p in weights):
            yield Cut(name, "frozen", "")


def _reads_detached(later: Call, earlier: Call) -> bool:
    x, y = later.kept[0][1], earlier.kept[1][1]
    return not later.input_attached and x.data_ptr() == y.data_ptr() and x.shape == y.shape
