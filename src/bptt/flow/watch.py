"""`bptt.watch`: what its hooks have kept of a block, computed when the weights change or the block ends, and shown."""

import functools
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from bptt.flow.diagnosis.findings import Finding
from bptt.flow.diagnosis.non_finite import NonFinite
from bptt.flow.diagnosis.profile import LayerFlow
from bptt.flow.diagnosis.statements import Age
from bptt.flow.diagnosis.verdict import judge
from bptt.flow.jacobians.arguments import whole
from bptt.flow.report.observations import Observations
from bptt.flow.tracing.trace import StackedTraces, Trace
from bptt.flow.tracing.truncation import Truncation, affordable_lookbacks, truncation
from bptt.flow.watching.call import Unsupported, WatchedCall
from bptt.flow.watching.handover import paths
from bptt.flow.watching.hooks import Hooks
from bptt.flow.watching.join import join
from bptt.flow.watching.missing import MissingGradient, missing_gradients
from bptt.flow.watching.replay import replay
from bptt.flow.watching.updates import Arguments, Closure, loss_scale, updates_a_weight_of
from bptt.parameters import name_in_stack
from bptt.warning import warn


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
        self._hooks = Hooks(model, self._note, say)
        self._stacks: dict[str, list[list[StackedTraces]]] = {}
        self._missing: list[MissingGradient] = []
        self._settled = False
        self._depth = 0

    def __enter__(self) -> "Flow":
        self._depth += 1
        if self._depth > 1:
            return self  # a block within a block of the same object: the outer one sees it all
        self._settled = False
        try:
            self._hooks.attach(self._before_update)
        except Exception as error:
            self._hooks.detach()
            self._say(f"could not begin: {type(error).__name__}: {error}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._hooks.detach()
        if kind is None:
            self._settle()
            self._say_what_was_missing()
        self._hooks.take()

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

        return compact(self.observations())

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self._say(text)

    # What is computed, and when.

    def _before_update(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments | None:
        """The weights are about to change: what rests on them is computed now.

        With a closure the backward pass is still to come, perhaps several times with other weights each: then it is computed
        whenever the closure ends. `args` are those of `step`, the optimizer itself among them.
        """
        if not updates_a_weight_of(optimizer, self.model):
            return None
        closure, arrived = Closure.of(args, kwargs), any(call.arrived for call in self._hooks.calls)
        if closure is not None or arrived:  # of several optimizers the first one counts
            self._age = self._age._replace(seen=self._age.seen + 1)
        if closure is None:
            self._settle(loss_scale())
            return None
        if arrived:  # else its backward pass may come in the closure
            self._settle()
        return closure.replaced(self._settling(closure.function), args, kwargs)

    def _settling(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """`closure`, after which the weights change."""

        @functools.wraps(closure)
        def watched() -> Any:
            result = closure()
            if self._depth:  # not if it is kept and called after the block
                self._settle()
            return result

        return watched

    def _settle(self, scale: float = 1.0) -> None:
        """Compute the profile of the calls kept so far, and forget them. `scale`: what the loss was multiplied with."""
        calls, norms = self._hooks.take()
        if not any(call.arrived for call in calls):
            return
        self._settled = True
        try:
            with torch.no_grad(), torch.autocast(calls[0].input_data.device.type, enabled=False):
                for call in calls if scale != 1 else ():
                    call.unscale(scale)
                self._settle_calls(calls)
                if norms:  # none where all weights are frozen, or after torch.autograd.grad
                    self.norms.append(float(torch.stack([n.double().cpu() for n in norms]).norm()) / scale)
        except Exception as error:
            self._say(f"could not compute the profile: {type(error).__name__}: {error}")

    def _settle_calls(self, calls: list[WatchedCall]) -> None:
        names, copies, every = self._hooks.names(), dict[int, Tensor](), paths(calls)
        of_module: dict[str, list[list[StackedTraces]]] = {}
        not_seen: set[str] = set()
        self._missing = list(missing_gradients(every, names))
        for path in every:
            name = names[id(path[0].module)]
            try:
                of_module.setdefault(name, []).append(join(path, [replay(call, copies) for call in path]))
            except Unsupported as reason:
                self._hooks.note_not_seen(path[0].module, reason)
                not_seen.add(name)
        for name, stacks in of_module.items():
            if name not in not_seen:
                self._stacks[name] = stacks
                self._add_layers(name, stacks)

    def _add_layers(self, module: str, stacks: list[list[StackedTraces]]) -> None:
        for depth, stacked in enumerate(stacks[0]):
            for direction in range(len(stacked.traces)):
                self._add_layer(module, depth, direction, [s[depth].traces[direction] for s in stacks])

    def _add_layer(self, module: str, depth: int, direction: int, traces: list[Trace]) -> None:
        name = f"{module}.{name_in_stack(depth, direction)}"
        if name not in self.layers:
            self.layers[name] = LayerFlow(name, module, depth, direction, traces[0].cell)
        self.layers[name].add(traces)

    def _say_what_was_missing(self) -> None:
        if self._settled or any("no recurrent layer" in n or n.startswith("does not see") for n in self.notes):
            return
        if not self._hooks.called:
            self._say("saw no call of a recurrent layer in the block: run the model inside it, not compiled")
        else:
            self._say(
                "saw no gradient arrive at a recurrent layer: call loss.backward() inside the block, without no_grad, on a "
                "loss that depends on the layer's outputs"
            )

    # What the user asks.

    def verdict(self) -> list[Finding]:
        """One or more findings for each layer and direction, each with its evidence and a remedy (see diagnosis/)."""
        return judge(list(self), self._missing, self.clip_value(), self._age)

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
        with torch.no_grad():
            return truncation(self._stacks, lookback)

    def observations(self, truncations: bool = False) -> Observations:
        """Everything that a report shows, as values.

        truncations: whether to compute what a few truncations would lose, as long as that is cheap: a second or two.
        """
        lookbacks: list[int] = []
        if truncations and self.first_non_finite is None:
            lookbacks = affordable_lookbacks([layer.traces for layer in self])
        found = tuple(self.truncation(k) for k in lookbacks)
        return Observations(tuple(self), self.verdict(), self.norms, self.clip_value(), self.notes, found)

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

        write_report(self.observations(truncations=True), Path(path))

    def to_tensorboard(self, writer: Any, step: int | None = None, tag: str = "flow") -> None:
        """Add horizon, growth, saturation, … to a torch.utils.tensorboard.SummaryWriter, or to what is like one.

        step: the number of the update, as of the writer's own methods. What the writer has no method for (histograms, the
        figure, text) is left out. Raises TypeError if it has no `add_scalar`.
        """
        from bptt.flow.report.tensorboard import write_board

        write_board(self.observations(), writer, step, tag)
