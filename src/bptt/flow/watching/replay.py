"""From what the hooks have kept of a call to the traces of its layers.

The top layer's states are its outputs. The layers below are taken from the kernels' tapes where bptt has run them, or else
run again without a graph; a dropout between layers draws the same masks again from the generator's state at the call.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bptt.cells import PointwiseCell, State, Weights
from bptt.flow.tracing.backward import send_back
from bptt.flow.tracing.trace import StackedTraces, Trace
from bptt.flow.watching.call import Unsupported, WatchedCall
from bptt.forms import Input
from bptt.kernels import Sequences, Stack, choose, cpu
from bptt.kernels.tape import Tape
from bptt.kernels.walk import Walk
from bptt.parameters import directions_of, state_widths, weights_of
from bptt.torch_private import version_of

_CHECKED = 128  # rows on which the recomputed outputs are compared with the model's


def replay(call: WatchedCall, copies: dict[int, Tensor]) -> list[StackedTraces]:
    """Return the traces of a call's layers with their δ, bottom first.

    `copies`: of the parameters, by id, which several calls share. Raises Unsupported where the traces cannot be had.
    """
    return list(LayerReplay(call, copies).stacked())


def draws_masks(module: Any) -> bool:
    """Return whether a call of the module draws dropout masks."""
    return bool(module.training and module.num_layers > 1 and module.dropout > 0)


class LayerReplay:
    """The layers of one call, taken up again."""

    def __init__(self, call: WatchedCall, copies: dict[int, Tensor]) -> None:
        """Raises Unsupported where the cell, or what has happened to the call's tensors since, does not allow it."""
        _refuse(call)
        assert isinstance(call.cell, PointwiseCell)
        self.call, self.cell, self.form, self.copies = call, call.cell, call.form, copies
        self.module: Any = call.module
        self.directions = directions_of(call.module)
        self.dtype = self._weights(0, 0)["weight_hh"].dtype
        given = self._time_first(call.x)
        self.reset = None if call.reset is None else self.form.time_first(call.reset)
        sequences = Sequences(given, self.form.batch_sizes, self.reset)
        self.walks = [Walk.over(sequences, bool(d)) for d in range(self.directions)]
        self.batched = given.shape[:-1]  # [T, B], or [N] of a packed sequence
        self.x = given.flatten(0, -2)

    def stacked(self) -> Iterator[StackedTraces]:
        """Yield the traces of each layer with their δ, bottom first."""
        inputs, masks, traces = self.x, [], []
        starts = self._states(self.call.hx)
        depth, tapes = self.module.num_layers, self._tapes()
        top = self._rows(self.call.outputs)
        draws = _Draws(self.call.rng)
        for layer in range(depth):
            own = [starts[layer * self.directions + d] for d in range(self.directions)]
            if tapes:
                traces.append(self._taped(layer, tapes))
            elif layer == depth - 1:
                traces.append(self._known(layer, inputs, own, top))
            else:
                traces.append(self._run(layer, inputs, own))
            if layer < depth - 1:
                outputs = _side_by_side(traces[-1])
                masks.append(draws.mask(outputs, self._dropout()))
                inputs = outputs if masks[-1] is None else outputs * masks[-1]
        self._find_gradients(traces, masks)
        self._check(traces[-1], top)
        return (StackedTraces(tuple(own), mask) for own, mask in zip(traces, [None, *masks], strict=True))

    def _find_gradients(self, traces: list[list[Trace]], masks: list[Tensor | None]) -> None:
        """δ of every layer, the top one first."""
        call, packed = self.call, self.form.packed
        external = self._rows(call.grads[0]) if 0 in call.grads else torch.zeros_like(_side_by_side(traces[-1]))
        finals = self._states(tuple(call.grads.get(n + 1, torch.zeros_like(s)) for n, s in enumerate(call.final)))
        for layer in reversed(range(len(traces))):
            d_x = None
            for d, trace in enumerate(traces[layer]):
                trace.external = external.chunk(self.directions, dim=-1)[d].contiguous()
                trace.d_final = finals[layer * self.directions + d]
                trace.samples = (None if packed is None else packed.sorted_indices,)
                found = send_back(trace, x_wanted=layer > 0)
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
                raise Unsupported(
                    f"its outputs could not be reproduced (relative error {float(error):.1e}): its weights were changed "
                    "before the block ended, its class changes what goes in or out, or cuDNN drew the dropout between its "
                    "layers: set dropout=0 while watching"
                )

    def _tapes(self) -> list[Tape]:
        """The native core's tape of every layer and direction; nothing if there is not one for each, with its gates."""
        tapes = self.call.tapes
        fits = len(tapes) == self.module.num_layers * self.directions and all(map(self._is_usable, tapes))
        return tapes if fits else []

    def _is_usable(self, tape: Tape) -> bool:
        return (
            isinstance(tape.kernel, cpu.Cpu)
            and not tape.kernel.bfloat16
            and len(tape.x) == len(self.x)
            and tape.x.dtype == self.dtype
            and (self.cell.gates == 1 or tape.saved[2] is not None)
        )

    def _taped(self, layer: int, tapes: list[Tape]) -> list[Trace]:
        """The traces of a layer that bptt has run."""
        traces = []
        for d, walk in enumerate(self.walks):
            tape = tapes[layer * self.directions + d]
            weights = self._weights(layer, d)
            traces.append(Trace(self.cell, weights, walk, tape.x, tape.outputs, tape.state, tape.saved))
        return traces

    def _known(self, layer: int, inputs: Tensor, starts: list[State], outputs: Tensor) -> list[Trace]:
        """The traces of a layer whose outputs are known."""
        parts = outputs.chunk(self.directions, dim=-1)
        return [
            Trace(self.cell, self._weights(layer, d), self.walks[d], inputs, parts[d].contiguous(), starts[d])
            for d in range(self.directions)
        ]

    def _run(self, layer: int, inputs: Tensor, starts: list[State]) -> list[Trace]:
        """The traces of a layer that is run again."""
        every = [self._weights(layer, d) for d in range(self.directions)]
        if not all(cpu.serves(self.cell, inputs, weights) for weights in every):
            return self._known(layer, inputs, starts, self._outputs_of_another_kernel(every, inputs, starts))
        traces = []
        for walk, start, weights in zip(self.walks, starts, every, strict=True):
            h, _, tape = cpu.Cpu().forward(self.cell, walk, inputs, start, weights, keep=True)
            traces.append(Trace(self.cell, weights, walk, inputs, h, start, tape))
        return traces

    def _outputs_of_another_kernel(self, weights: list[Weights], inputs: Tensor, starts: list[State]) -> Tensor:
        """The outputs of one layer, where the native core does not serve."""
        stack = Stack(self.cell, (tuple(weights),))
        sequences = Sequences(inputs.unflatten(0, self.batched), self.form.batch_sizes, self.reset)
        state = tuple(torch.stack(component) for component in zip(*starts, strict=True))
        outputs = choose("auto", stack, sequences, state).run(stack, sequences, state)[0]
        return outputs.flatten(0, -2)

    def _dropout(self) -> float:
        return float(self.module.dropout) if self.module.training else 0.0

    def _weights(self, layer: int, direction: int) -> Weights:
        """Copies of one layer's parameters, so that what is asked for later does not see a later update."""
        own = weights_of(self.module, self.cell, layer, direction)
        return {name: self._copy(parameter) for name, parameter in own.items()}

    def _copy(self, parameter: Tensor) -> Tensor:
        """A copy that several calls share; half-precision models are watched in float32."""
        if id(parameter) not in self.copies:
            own = parameter.detach()
            wide = own if own.dtype in (torch.float32, torch.float64) else own.float()
            self.copies[id(parameter)] = wide.clone()
        return self.copies[id(parameter)]

    def _time_first(self, tensor: Input) -> Tensor:
        return self.form.time_first(tensor).to(torch.promote_types(self.dtype, torch.float32))

    def _rows(self, tensor: Input) -> Tensor:
        """What has the form of the input, as rows [N, ·]."""
        return self._time_first(tensor).flatten(0, -2)

    def _states(self, given: State) -> list[State]:
        """A state for each layer and direction, forward before reverse, in the order of the rows; zeros if not given."""
        n = self.module.num_layers * self.directions
        if not given:
            widths = state_widths(self.module, self.cell)
            return [tuple(self.x.new_zeros(self.walks[0].batch, width) for width in widths) for _ in range(n)]
        components = [self.form.state_in(s.detach().to(self.x.dtype)) for s in given]
        return [tuple(s[i].contiguous() for s in components) for i in range(n)]


def _refuse(call: WatchedCall) -> None:
    if not isinstance(call.cell, PointwiseCell):
        raise Unsupported(f"{call.cell} is no PointwiseCell, so its derivative has no closed form: it is not watched")
    if call.twice:
        raise Unsupported(
            "its gradient was made to be differentiated once more (create_graph=True, torch.func): only first "
            "derivatives are watched"
        )
    for name, tensor, version in call.kept:
        if version_of(tensor) != version:
            raise Unsupported(f"the {name} was changed in place after the call: clone it before changing it")


def _side_by_side(traces: list[Trace]) -> Tensor:
    """The outputs of both directions [N, directions·H]."""
    return traces[0].outputs if len(traces) == 1 else torch.cat([trace.outputs for trace in traces], dim=-1)


class _Draws:
    """The dropout masks between layers, drawn again; the generator is left as it was."""

    def __init__(self, rng: Tensor | None) -> None:
        self.rng = rng

    def mask(self, outputs: Tensor, p: float) -> Tensor | None:
        if not p:
            return None
        if self.rng is None or outputs.device.type != "cpu":
            raise Unsupported(
                "the dropout between its layers cannot be drawn again on this device: set dropout=0 while watching"
            )
        now = torch.get_rng_state()
        try:
            torch.set_rng_state(self.rng)
            mask = F.dropout(torch.ones_like(outputs), p, training=True)
            self.rng = torch.get_rng_state()
        finally:
            torch.set_rng_state(now)
        return mask
