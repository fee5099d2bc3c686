"""One call of a recurrent module: what the hooks keep of it, and the traces that follow from that.

Kept are references: the input, the initial state, the outputs, and the gradients that arrive at them from outside. From
these each layer of a stack is taken up again. The top layer's states are its outputs; the layers below are run anew, without
a graph, and a dropout between layers draws the same masks again from the generator's state at the call.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from bptt.cells import GRU, LSTM, Cell, Elman, PointwiseCell, State, Weights
from bptt.flow.watching import path
from bptt.flow.watching.path import Source
from bptt.flow.watching.trace import Trace, Way
from bptt.flow.watching.truncation import Link
from bptt.kernels import Sequences, Stack, choose, cpu
from bptt.kernels.tape import Tape

_CHECKED = 128  # rows on which the recomputed outputs are compared with the model's
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}  # other formats 0.1: the model's own rounding


class Unseen(RuntimeError):
    """A call that cannot be taken up again; the message says why and what to do."""


@dataclass
class Call:
    """What is kept of one call. Gradients are added up, should several backward passes reach it.

    Attributes:
        grads: the gradients that arrived, by place: 0 the outputs, 1 and up the components of the final state.
        passes: numbers of the backward passes that brought them.
        sources: the earlier calls whose final state, attached, it began with (see `bptt.flow.watching.path`).
        lost: whether its initial state hangs on an earlier call in the graph, in a way that cannot be followed.
        carried: whether the call began with a state that was cut off the graph (detached), is not 0, and may come from
            such a layer (one drawn from a normal distribution does not).
        tolerance: how far, relative in norm, the outputs may be from what one step from the states gives.
        twice: whether a backward pass was itself recorded, to be differentiated (create_graph=True).
        follows: the earlier calls of the same module whose final state, detached, it began with, if they lie in this block.
        tapes: what bptt's kernels have kept of it, layer by layer and direction by direction.
    """

    module: nn.Module
    cell: Cell
    x: Any
    hx: State
    outputs: Any
    final: State
    reset: Any
    rng: tuple[Tensor, ...]
    kept: tuple[tuple[str, Tensor, int], ...]
    grads: dict[int, Tensor] = field(default_factory=dict)
    passes: set[int] = field(default_factory=set)
    differentiable: bool = False
    sources: tuple[Source, ...] = ()
    lost: bool = False
    carried: bool = False
    follows: "tuple[Call, ...]" = ()
    tapes: list[Tape] = field(default_factory=list)
    input_attached: bool = False
    twice: bool = False
    tolerance: float = 0.1

    @staticmethod
    def of(
        module: nn.Module,
        cell: Cell,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        earlier: "Sequence[Call]" = (),
    ) -> "Call":
        """Keep the references, and ask for the gradients of the results; the graph itself is not kept.

        `earlier`: the module's calls so far, from which it may go on.

        Raises Unseen where input and results are not of the layer's form.
        """
        x = args[0] if args else kwargs["input"]
        hx = args[1] if len(args) > 1 else kwargs.get("hx")
        given: State = () if hx is None else (hx,) if isinstance(hx, Tensor) else tuple(hx)
        outputs, last = _results(result)
        if not _of_the_layers_form(module, cell, x, given, outputs, last):
            raise Unseen(
                f"{type(module).__name__} takes or returns other than the layer that it is derived from, so what ran inside "
                "cannot be known: let it hold the layer, in a module of its own, instead of deriving from it"
            )
        named = [("input", _data(x)), ("output", _data(outputs)), *(("state", s) for s in (*given, *last))]
        call = Call(
            module, cell, _detached(x), tuple(s.detach() for s in given), _detached(outputs),
            tuple(s.detach() for s in last), kwargs.get("reset"), (),
            tuple((name, tensor.detach(), tensor._version) for name, tensor in named),
            input_attached=_data(x).requires_grad, tolerance=_tolerance(_data(outputs)),
        )  # fmt: skip
        call._begin(given, earlier)
        for place, tensor in enumerate((_data(outputs), *last)):
            if tensor.requires_grad:
                call.differentiable = True
                path.mark(call, place, tensor)
                tensor.register_hook(call._catcher(place))
        return call

    def _catcher(self, place: int) -> Callable[[Tensor], None]:
        def catch(grad: Tensor | None) -> None:
            if grad is None:
                return
            self.twice = self.twice or torch.is_grad_enabled()
            had = self.grads.get(place)
            self.grads[place] = grad.detach() if had is None else had + grad.detach()
            self.passes.add(torch._C._current_graph_task_id())

        return catch

    def unscale(self, scale: float) -> None:
        """Divide the gradients by what the loss was multiplied with."""
        self.grads = {place: grad / scale for place, grad in self.grads.items()}

    @property
    def arrived(self) -> bool:
        """Whether any gradient has arrived."""
        return bool(self.grads)

    def _begin(self, given: State, earlier: "Sequence[Call]") -> None:
        """Find out where the initial state comes from."""
        if not any(bool(s.any()) for s in given):
            given = tuple(
                s for s in given if s.requires_grad
            )  # zeros: nothing is carried, but a state may have been reset
        before = path.attached_to(given, earlier)
        if before:
            both = bool(self.module.bidirectional)
            self.sources = () if both else path.sources(self, before)
            self.lost = not self.sources
        elif given and all(s.grad_fn is None for s in given):
            self.follows = path.detached_from(self, earlier)
            detached = not any(s.requires_grad for s in given)
            self.carried = bool(self.follows) or (detached and _its_own(self.module, self.cell, given))

    def samples_of(self, state: State) -> Tensor:
        """A state as one row for each sample, [B, ·]."""
        batched = self.x.data.dim() == 3 or isinstance(self.x, PackedSequence)
        parts = [(s if batched else s.unsqueeze(1)).transpose(0, 1).flatten(1) for s in state]
        return torch.cat(parts, dim=1)

    def rows_of_samples(self) -> Tensor:
        """The row of each sample in the traces' order, int64 [B]."""
        if isinstance(self.x, PackedSequence) and self.x.unsorted_indices is not None:
            return self.x.unsorted_indices.cpu()
        return torch.arange(len(self.samples_of(self.final)), device="cpu")

    @property
    def rounding(self) -> float:
        """How far, relative in norm, a gradient that autograd brought may be from the same one of ours."""
        return self.tolerance if self.tolerance >= 0.1 else self.tolerance / 10

    def stack(self, copies: dict[int, Tensor]) -> list[Link]:
        """The traces of all layers with their δ, bottom first.

        `copies`: of the parameters, by id, which several calls share. Raises Unseen where they cannot be had.
        """
        return list(_Anew(self, copies).links())


class _Anew:
    """The call's layers, taken up again."""

    def __init__(self, call: Call, copies: dict[int, Tensor]) -> None:
        self.copies = copies
        if not isinstance(call.cell, PointwiseCell):
            raise Unseen(f"{call.cell} is no PointwiseCell, so its derivative has no closed form: it is not watched")
        if call.twice:
            raise Unseen(
                "its gradient was made to be differentiated once more (create_graph=True, torch.func): only first "
                "derivatives are watched"
            )
        for name, tensor, version in call.kept:
            if tensor._version != version:
                raise Unseen(f"the {name} was changed in place after the call: clone it before changing it")
        self.call, self.cell = call, call.cell
        self.module: Any = call.module
        packed = call.x if isinstance(call.x, PackedSequence) else None
        self.packed = packed
        self.unbatched = packed is None and call.x.dim() == 2
        self.directions = 2 if self.module.bidirectional else 1
        first = self._weights(0, 0)["weight_hh"]
        self.dtype = first.dtype
        x = self._rows(call.x)
        sizes = [x.shape[1]] * x.shape[0] if packed is None else packed.batch_sizes.tolist()
        self.x = x.flatten(0, 1) if packed is None else x
        self.sizes = tuple(int(n) for n in sizes)
        reset = call.reset
        self.reset = None if reset is None else self._rows(reset, bool_too=True)
        flat = None if self.reset is None else self.reset if packed is not None else self.reset.flatten()
        self.ways = [Way.over(self.sizes, bool(d), flat) for d in range(self.directions)]

    def links(self) -> Iterator[Link]:
        inputs, masks, traces = self.x, [], []
        starts = self._states(self.call.hx)
        depth, tapes = self.module.num_layers, self._tapes()
        top = self._rows(self.call.outputs)
        top = top.flatten(0, 1) if self.packed is None else top
        draws = _Draws(self.call.rng)
        for layer in range(depth):
            last = layer == depth - 1
            own = [starts[layer * self.directions + d] for d in range(self.directions)]
            if tapes:
                traces.append(self._taped(layer, tapes))
            else:
                traces.append(self._known(layer, inputs, own, top) if last else self._anew(layer, inputs, own))
            if last:
                break
            outputs = _beside_each_other(traces[-1])
            masks.append(draws.mask(outputs, self._dropout()))
            inputs = outputs if masks[-1] is None else outputs * masks[-1]
        self._gradients(traces, masks)
        self._check(traces[-1], top)
        return (Link(tuple(own), mask) for own, mask in zip(traces, [None, *masks], strict=True))

    def _gradients(self, traces: list[list[Trace]], masks: list[Tensor | None]) -> None:
        """δ of every layer, the top one first."""
        call = self.call
        if 0 in call.grads:
            rows = self._rows(call.grads[0])
            external = rows.flatten(0, 1) if self.packed is None else rows
        else:
            external = torch.zeros_like(_beside_each_other(traces[-1]))
        finals = self._states(tuple(call.grads.get(n + 1, torch.zeros_like(s)) for n, s in enumerate(call.final)))
        for layer in reversed(range(len(traces))):
            d_x = None
            for d, trace in enumerate(traces[layer]):
                trace.external = external.chunk(self.directions, dim=-1)[d].contiguous()
                trace.d_final = finals[layer * self.directions + d]
                trace.samples = (None if self.packed is None else self.packed.sorted_indices,)
                found = trace.run(x_wanted=layer > 0)
                d_x = found if d_x is None or found is None else d_x + found
            if layer and d_x is not None:
                mask = masks[layer - 1]
                external = d_x if mask is None else d_x * mask

    def _check(self, traces: list[Trace], outputs: Tensor) -> None:
        """One step from the known state before it must give the output that the model gave."""
        for trace, given in zip(traces, outputs.chunk(self.directions, dim=-1), strict=True):
            n = len(trace.x)
            rows = torch.linspace(0, n - 1, min(n, _CHECKED), device=trace.x.device).round().long()
            seen, made = given[rows], trace.recomputed(rows)
            finite = seen.isfinite() & made.isfinite()
            error = (seen - made)[finite].norm() / seen[finite].norm().clamp_min(1e-30)
            if finite.any() and float(error) > self.call.tolerance:
                raise Unseen(
                    f"its outputs could not be reproduced (relative error {float(error):.1e}): its weights were changed "
                    "before the block ended, its class changes what goes in or out, or cuDNN drew the dropout between its "
                    "layers: set dropout=0 while watching"
                )

    def _tapes(self) -> list[Tape]:
        """The native core's tape of every layer and direction; nothing if there is not one for each, with its gates."""
        tapes = self.call.tapes
        fits = len(tapes) == self.module.num_layers * self.directions and all(
            isinstance(tape.kernel, cpu.Cpu)
            and not tape.kernel.bfloat16
            and len(tape.x) == sum(self.sizes)
            and tape.x.dtype == self.dtype
            and (self.cell.gates == 1 or tape.saved[2] is not None)
            for tape in tapes
        )
        return tapes if fits else []

    def _taped(self, layer: int, tapes: list[Tape]) -> list[Trace]:
        """The traces of a layer that bptt has run."""
        traces = []
        for d, way in enumerate(self.ways):
            tape = tapes[layer * self.directions + d]
            weights = self._weights(layer, d)
            traces.append(Trace(self.cell, weights, way, tape.x, tape.outputs, tape.state, tape.saved))
        return traces

    def _known(self, layer: int, inputs: Tensor, starts: list[State], outputs: Tensor) -> list[Trace]:
        """The traces of a layer whose outputs are known."""
        parts = outputs.chunk(self.directions, dim=-1)
        return [
            Trace(self.cell, self._weights(layer, d), self.ways[d], inputs, parts[d].contiguous(), starts[d])
            for d in range(self.directions)
        ]

    def _anew(self, layer: int, inputs: Tensor, starts: list[State]) -> list[Trace]:
        """The traces of a layer that is run anew."""
        every = [self._weights(layer, d) for d in range(self.directions)]
        if not all(cpu.serves(self.cell, inputs, weights) for weights in every):
            return self._known(layer, inputs, starts, self._run(layer, inputs, starts))
        traces = []
        for way, start, weights in zip(self.ways, starts, every, strict=True):
            h, _, tape = cpu.Cpu().forward(self.cell, way.walk(), inputs, start, weights, keep=True)
            traces.append(Trace(self.cell, weights, way, inputs, h, start, tape))
        return traces

    def _run(self, layer: int, inputs: Tensor, starts: list[State]) -> Tensor:
        """Outputs of one layer, from another kernel than the native core."""
        weights = tuple(self._weights(layer, d) for d in range(self.directions))
        stack = Stack(self.cell, (weights,))
        batched = inputs if self.packed is not None else inputs.unflatten(0, (len(self.sizes), self.sizes[0]))
        sequences = Sequences(batched, None if self.packed is None else self.packed.batch_sizes, self.reset)
        state = tuple(torch.stack(component) for component in zip(*starts, strict=True))
        outputs = choose("auto", stack, sequences, state).run(stack, sequences, state)[0]
        return outputs if self.packed is not None else outputs.flatten(0, 1)

    def _dropout(self) -> float:
        return float(self.module.dropout) if self.module.training else 0.0

    def _weights(self, layer: int, direction: int) -> Weights:
        """Copies of one layer's parameters, so that what is asked for later does not see a later update."""
        end = f"_l{layer}{'_reverse' if direction else ''}"
        shapes = self.cell.shapes(1, self.module.hidden_size, bool(self.module.bias), self.module.proj_size)
        return {name: self._copy(getattr(self.module, name + end)) for name in shapes}

    def _copy(self, parameter: Tensor) -> Tensor:
        if id(parameter) not in self.copies:
            self.copies[id(parameter)] = self._wide(parameter.detach()).clone()
        return self.copies[id(parameter)]

    def _wide(self, tensor: Tensor) -> Tensor:
        """Half-precision models are watched in float32."""
        return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()

    def _rows(self, tensor: Any, bool_too: bool = False) -> Tensor:
        """Time first, [T, B, ·]; or the rows of a packed sequence."""
        found: Tensor = tensor.data if isinstance(tensor, PackedSequence) else tensor
        if self.packed is None:
            if self.unbatched:
                found = found.unsqueeze(1)
            elif self.module.batch_first:
                found = found.transpose(0, 1)
        return found if bool_too else found.to(torch.promote_types(self.dtype, torch.float32))

    def _states(self, given: State) -> list[State]:
        """A state for each layer and direction, forward before reverse, in the order of the rows; zeros if not given."""
        n = self.module.num_layers * self.directions
        widths = [
            self.module.proj_size or self.module.hidden_size,
            *[self.module.hidden_size] * (len(self.cell.states) - 1),
        ]
        if not given:
            B = self.sizes[0]
            return [tuple(self.x.new_zeros(B, width) for width in widths) for _ in range(n)]
        components = []
        for s in given:
            s = s.detach().to(self.x.dtype)
            s = s.unsqueeze(1) if self.unbatched else s
            if self.packed is not None and self.packed.sorted_indices is not None:
                s = s.index_select(1, self.packed.sorted_indices)
            components.append(s)
        return [tuple(s[i].contiguous() for s in components) for i in range(n)]


def _beside_each_other(traces: list[Trace]) -> Tensor:
    """The outputs of both directions [N, directions·H]."""
    return traces[0].outputs if len(traces) == 1 else torch.cat([trace.outputs for trace in traces], dim=-1)


class _Draws:
    """The dropout masks between layers, drawn again; the generators are left as they were."""

    def __init__(self, rng: tuple[Tensor, ...]) -> None:
        self.rng = rng

    def mask(self, outputs: Tensor, p: float) -> Tensor | None:
        if not p:
            return None
        if not self.rng or outputs.device.type != "cpu":
            raise Unseen(
                "the dropout between its layers cannot be drawn again on this device: set dropout=0 while watching"
            )
        now = torch.get_rng_state()
        try:
            torch.set_rng_state(self.rng[0])
            mask = F.dropout(torch.ones_like(outputs), p, training=True)
            self.rng = (torch.get_rng_state(),)
        finally:
            torch.set_rng_state(now)
        return mask


def needs_draws(module: nn.Module) -> bool:
    """Whether a call of it draws dropout masks."""
    return bool(module.training and module.num_layers > 1 and module.dropout > 0)  # type: ignore[operator]


def _its_own(module: nn.Module, cell: Cell, state: State) -> bool:
    """Whether a layer of this kind may have left the state: whether h is in the range of its activation."""
    h = state[0]
    match cell:
        case Elman(nonlinearity="relu"):
            return bool((h >= 0).all())
        case Elman() | GRU() | LSTM() if not module.proj_size:
            return bool((h.abs() <= 1).all())
        case _:
            return True


def _results(result: Any) -> tuple[Any, State]:
    """The outputs and the final state's components, of what a layer has returned; () where that is something else."""
    if not isinstance(result, tuple) or len(result) != 2:
        return None, ()
    outputs, final = result
    return outputs, (final,) if isinstance(final, Tensor) else tuple(final)


def _of_the_layers_form(module: Any, cell: Cell, x: Any, given: State, outputs: Any, final: State) -> bool:
    """Whether all shapes are those of the layer: a class derived from one may take and return what it likes."""
    packed = isinstance(x, PackedSequence)
    tensors = (_data(x), _data(outputs), *given, *final)
    if isinstance(outputs, PackedSequence) != packed or not all(isinstance(t, Tensor) for t in tensors):
        return False
    rows = _data(x).shape[:-1]
    if len(rows) not in ((1,) if packed else (1, 2)):
        return False
    batch = (int(x.batch_sizes[0]),) if packed else () if len(rows) == 1 else (rows[0 if module.batch_first else 1],)
    directions = 2 if module.bidirectional else 1
    width = module.proj_size or module.hidden_size
    widths = [width, *[module.hidden_size] * (len(cell.states) - 1)]
    states = [(module.num_layers * directions, *batch, n) for n in widths]
    return (
        _data(x).shape[-1] == module.input_size
        and _data(outputs).shape == (*rows, directions * width)
        and [tuple(s.shape) for s in final] == states
        and (not given or [tuple(s.shape) for s in given] == states)
    )


def _tolerance(outputs: Tensor) -> float:
    if torch.is_autocast_enabled(outputs.device.type):
        return 0.1
    return _TOLERANCE.get(outputs.dtype, 0.1)


def _data(tensor: Any) -> Tensor:
    return tensor.data if isinstance(tensor, PackedSequence) else tensor


def _detached(tensor: Any) -> Any:
    if isinstance(tensor, PackedSequence):
        return PackedSequence(tensor.data.detach(), *tensor[1:])
    return tensor.detach()
