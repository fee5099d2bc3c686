"""Online gradients: forward in time, one step at a time, in memory that does not grow with T.

Instead of going back, the influence J_t = ∂s_t/∂θ of the parameters on the state goes along
(`bptt.gradient.online.influence`):

    ∂L(t)/∂θ = ∂⁺L(t)/∂θ + ∂L(t)/∂s_{t-1} · J_{t-1}          docs/equations.md, eq. (27)

The first part, this step's alone, and ∂L(t)/∂s_{t-1} are one backward pass through one step.
Source: R. Williams, D. Zipser, "A learning algorithm for continually running fully recurrent neural networks", 1989.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bptt.cells import PointwiseCell
from bptt.forms import Arguments, components
from bptt.gradient.base import Chunk, Result, Strategy, detach, scalar, time_slice
from bptt.gradient.collect import Collected, gradients, leaves_of, to_sum_format
from bptt.gradient.online.influence import (
    AnyModule,
    ClosedForm,
    Diagonal,
    EmbeddedSymbols,
    Full,
    Influence,
    layers_of_step,
)
from bptt.gradient.parallel import run_in_pieces
from bptt.layers import cell_of, find_cell
from bptt.parameters import weights_of
from bptt.torch_private import tree_flatten, tree_leaves

_LIMIT = 128  # numbers of a layer's state, above which RTRL wants to be told


class Cost(NamedTuple):
    """What carrying the influence takes: memory in bytes, and multiplications a step."""

    bytes: int
    multiplications: int

    def __str__(self) -> str:
        return (
            f"{self.bytes / 1e6:,.1f} MB of influence, {self.multiplications / 1e6:,.1f} million multiplications a step"
        )


class _Online(Strategy):
    """What both online strategies share: the loop over the steps."""

    def backward(self, chunk: Chunk) -> Result:
        """Add Σ_t ∂L(t)/∂θ to `.grad`, once all steps are done: an error on the way leaves `.grad` as it was.

        The influence goes on in the result: pass it as `state=` of the next call.

        Raises:
            TypeError: the model is no torch.nn.Module, so that its parameters are unknown; a state that is not tensors.
            ValueError: its layers look ahead (bidirectional), the state or x wants a gradient, or it is refused (see the
                class).
        """
        if not isinstance(chunk.model, nn.Module):
            raise TypeError(f"the model is a {type(chunk.model).__name__}, wanted a torch.nn.Module with parameters")
        for module in chunk.model.modules():
            if isinstance(module, nn.RNNBase) and module.bidirectional:
                raise ValueError("a bidirectional layer needs steps that have not come yet: use Exact() or Truncated()")
        if any(isinstance(s, Tensor) and s.requires_grad for s in tree_leaves(chunk.state)):
            raise ValueError(
                "the state wants a gradient, and what is carried forward is the influence of the model's parameters alone: "
                "pass the state detached, or use Exact(), Truncated() or Checkpointed()"
            )
        run = _OnlineRun(self, chunk.model, chunk.past)
        with run_in_pieces(self, chunk.model, chunk.loss):
            loss, state = run.all(chunk)
            run.gradient.give(chunk.model, chunk.loss)
        tensors = run.influence.tensors() if run.influence is not None else ()
        return Result(loss, detach(state), tensors)

    @abstractmethod
    def influence_of(self, layer: nn.Module | None, step: "StepRecord", state: Sequence[Tensor]) -> Influence:
        """Return the influence that this strategy keeps, empty; `layer` None: the model has no closed form."""


@dataclass(frozen=True)
class RTRL(_Online):
    """Real-time recurrent learning: the exact gradient, forward in time.

    Equal to `Exact()` while the weights are held. Where they are updated between calls, the influence is that of the
    weights as they were at each step; small learning rates keep the difference small. Stacks of pointwise cells (torch.nn's,
    bptt's), also above an embedding, have a closed form; for anything else autograd goes through each step once for each
    number of the state. Memory B·S·|θ| numbers, B·S²·|θ| multiplications a step, with S numbers in a layer's state: for
    small networks. `cost(model)` says how much.

    Args:
        limit: the largest hidden size (for other modules: numbers in the state) that is not refused.

    >>> model = torch.nn.GRU(2, 8)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> squared = lambda outputs, targets: ((outputs - targets) ** 2).sum()
    >>> result = None
    >>> for x, y in zip(torch.randn(5, 1, 1, 2), torch.randn(5, 1, 1, 8)):  # a stream: one step, one update
    ...     optimizer.zero_grad()
    ...     result = RTRL().backward(Chunk(model, x, y, squared, *([result.state, None, result.past] if result else [])))
    ...     optimizer.step()
    """

    limit: int = _LIMIT

    def cost(self, model: nn.Module, batch: int = 1) -> Cost:
        """Return what the influence of the model's pointwise layers takes. Raises TypeError if there are none."""
        layer = _only_layer(model)
        if layer is None:
            raise TypeError("cost needs a model with one recurrent layer of torch.nn or bptt with a pointwise cell")
        size = len(cell_of(layer).states) * int(layer.hidden_size)  # type: ignore[arg-type]
        sizes = [sum(w.numel() for w in weights.values()) for weights in _weights(layer)]
        pairs = sum(sum(sizes[: above + 1]) for above in range(len(sizes)))
        item = next(layer.parameters()).element_size()
        return Cost(batch * size * pairs * item, batch * size * size * pairs)

    def influence_of(self, layer: nn.Module | None, step: "StepRecord", state: Sequence[Tensor]) -> Influence:
        """Return the whole influence, in closed form if there is one. Raises ValueError beyond `limit`."""
        if layer is not None:
            if layer.hidden_size > self.limit:  # type: ignore[operator]
                raise ValueError(
                    f"RTRL with hidden size {layer.hidden_size} takes {self.cost(layer, step.batch)}: pass "
                    f"RTRL(limit={layer.hidden_size}) to do it all the same, or take SnAp1(), Truncated() or Exact()"
                )
            return Full(_weights(layer), step.table)
        numbers = sum(s.numel() for s in state)
        if numbers > self.limit:
            raise ValueError(
                f"RTRL has no closed form for this model, and would go back through every step {numbers} times, once for "
                f"each number of its state: pass RTRL(limit={numbers}) to do it all the same, or take Truncated() or Exact()"
            )
        return AnyModule([p for p in step.model.parameters() if p.requires_grad])


@dataclass(frozen=True)
class SnAp1(_Online):
    """Sparse n-step approximation with n = 1: of the influence only what a parameter does to its own unit is kept.

    That is J'[s] = I[s] + Σ_r A[s][r] ∘ J'[r], eq. (28), with the entries of the Jacobian from a unit to itself. Exact, like
    RTRL, where the recurrence is diagonal; elsewhere what travels through other units is lost. Memory B·|θ| numbers for each
    component of the state, and as many multiplications a step: like the network itself. One layer with a pointwise cell.

    Source: J. Menick et al., "Practical real time recurrent learning with a sparse approximation", 2021.
    """

    def influence_of(self, layer: nn.Module | None, step: "StepRecord", state: Sequence[Tensor]) -> Influence:
        """Return the entries of the parameters' own units. Raises ValueError for a model without this closed form."""
        if layer is None or layer.num_layers != 1:
            raise ValueError(
                "SnAp1 needs one recurrent layer with a pointwise cell, without projection, whose state is the model's, "
                "before the step and after it, and whose input is data or an embedding: use RTRL(), Truncated() or Exact()"
            )
        return Diagonal(_weights(layer), step.table)


@dataclass
class StepRecord:
    """The calls of the recurrent layer and of embeddings during one step of the model, as hooks saw them.

    Attributes:
        inputs, hx: the layer's input, and its initial state if one was given.
        after: the state that the layer returned.
        calls: how often the layer was called.
        tables: each embedding that ran, with its symbols and its output.
    """

    model: nn.Module
    inputs: Tensor | None = None
    hx: tuple[Tensor, ...] | None = None
    after: tuple[Tensor, ...] = ()
    calls: int = 0
    tables: list[tuple[nn.Embedding, Tensor, Tensor]] = field(default_factory=list)

    @property
    def batch(self) -> int:
        """B."""
        return 1 if self.inputs is None else self.inputs.shape[1]

    @property
    def embedded(self) -> EmbeddedSymbols | None:
        """The symbols of the embedding whose output is the layer's input; None if its input is no such output."""
        for table, symbols, output in self.tables:
            if output is self.inputs and table.weight.requires_grad and not table.scale_grad_by_freq:
                return EmbeddedSymbols(table.weight, symbols.flatten(), table.padding_idx)
        return None

    @property
    def table(self) -> Tensor | None:
        """The weight of that embedding."""
        return None if self.embedded is None else self.embedded.weight

    def fits(self, layer: nn.Module, leaves: Sequence[Tensor], after: Any) -> bool:
        """Whether the closed form holds: the model's state is the layer's, and nothing with parameters is before it.

        Not so where the model makes something of the state that the layer returns: `state.clamp(-1, 1)`, `state.detach()`.
        """
        x = self.inputs
        if self.calls != 1 or x is None or x.dim() != 3 or x.shape[0] != 1 or layer.batch_first:
            return False
        own_state = _are_same_objects(self.hx or (), leaves) and _are_same_objects(self.after, tree_leaves(after))
        return own_state and (not x.requires_grad or self.embedded is not None)


class _OnlineRun:
    """The loop over the steps of one call."""

    def __init__(self, strategy: _Online, model: nn.Module, past: Any) -> None:
        self.strategy, self.model, self.past = strategy, model, past
        self.layer = _only_layer(model)
        self.influence: Influence | None = None
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.gradient = Collected()

    def all(self, chunk: Chunk) -> tuple[Tensor, Any]:
        """Run all steps; return the loss, and the state after them without graph."""
        state, total, dtype = chunk.state, torch.zeros((), device="cpu"), torch.float32
        for t in range(chunk.steps):
            reset = None if chunk.reset is None else time_slice(chunk.reset, t, t + 1)
            value, state = self.step(chunk, time_slice(chunk.x, t, t + 1), time_slice(chunk.y, t, t + 1), state, reset)
            total, dtype = to_sum_format(value) + total.to(value.device), value.dtype
        return total.to(dtype), state

    def step(self, chunk: Chunk, x: Any, y: Any, state: Any, reset: Tensor | None) -> tuple[Tensor, Any]:
        """Run one step; return the loss's value, and the state after it without graph."""
        leaves, state = _as_leaves(state)
        with _recording(self.model, self.layer) as step:
            outputs, after = chunk.forward(x, state, reset)
        value = scalar(chunk.loss(outputs, y))
        if self._others(tree_leaves(after), leaves):
            raise ValueError(
                "the state depends on a tensor that wants a gradient and is no parameter of the model (x, say), and what is "
                "carried forward is the influence of the model's parameters alone: detach it, or use Exact() or Truncated()"
            )
        closed = self.layer is not None and step.fits(self.layer, leaves, after)
        if self.influence is None:
            self.influence = self._begin(step, closed, after)
        elif isinstance(self.influence, ClosedForm) and not closed:
            raise ValueError(
                "the model began as one recurrent layer with the model's state, and now puts something before it or makes "
                "something of its state: let it do the same at every step (also where the state is None)"
            )
        if value.requires_grad:
            self._collect(value, leaves, self.influence)
        self._advance(step, leaves, after, reset)
        return value.detach(), detach(after)

    def _collect(self, loss: Tensor, leaves: Sequence[Tensor], influence: Influence) -> None:
        """Collect a step's gradient: ∂⁺L(t)/∂θ, and ∂L(t)/∂s_{t-1} · J_{t-1} through `leaves`, the state before the step."""
        wanted = [*leaves, *self.parameters, *self._others([loss], leaves)]
        grads = gradients([loss], wanted, retain_graph=True)
        for p, g in zip(wanted[len(leaves) :], grads[len(leaves) :], strict=True):
            self.gradient.add(p, g)
        d_state = [torch.zeros_like(s) if g is None else g for s, g in zip(leaves, grads, strict=False)]
        if d_state:
            earlier = influence.pull(d_state)
            for p in self.parameters:
                self.gradient.add(p, earlier.get(id(p)))

    def _others(self, tensors: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
        """The leaves, beside the state and the model's parameters, on which the tensors depend: a head in the loss, say."""
        known = {id(tensor) for tensor in (*leaves, *self.parameters)}
        return [leaf for leaf in leaves_of(tensors) if id(leaf) not in known]

    def _begin(self, step: StepRecord, closed: bool, after: Any) -> Influence:
        influence = self.strategy.influence_of(self.layer if closed else None, step, tree_leaves(after))
        if self.past:
            if not isinstance(self.past, tuple):
                raise ValueError("the state is another strategy's Result: pass its `.state` to start from it")
            influence.restore(self.past)  # type: ignore[attr-defined]
        return influence

    def _advance(self, step: StepRecord, leaves: Sequence[Tensor], after: Any, reset: Tensor | None) -> None:
        if isinstance(self.influence, AnyModule):
            self.influence.advance(tree_leaves(after), leaves)
            return
        assert isinstance(self.influence, ClosedForm)
        assert self.layer is not None
        assert step.inputs is not None
        cell = cell_of(self.layer)
        assert isinstance(cell, PointwiseCell)
        before = tuple(s.detach() for s in leaves) or tuple(torch.zeros_like(s) for s in tree_leaves(after))
        with torch.no_grad():
            weights = [{name: w.detach() for name, w in own.items()} for own in _weights(self.layer)]
            flags = None if reset is None else reset[0]
            self.influence.advance(layers_of_step(cell, weights, step.inputs[0].detach(), before, flags), step.embedded)


def _as_leaves(state: Any) -> tuple[list[Tensor], Any]:
    """New leaves with the values of the state's tensors, and the state made of them."""
    if state is None:
        return [], None
    leaves, structure = tree_flatten(state)
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise TypeError("the state holds something that is no tensor: let the model carry tensors alone")
    fresh = [leaf.detach().requires_grad_() for leaf in leaves]
    return fresh, structure.unflatten(fresh)


def _are_same_objects(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether two sequences hold the same objects."""
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def _only_layer(model: nn.Module) -> nn.Module | None:
    """Return the model's only recurrent layer if the influence has a closed form for it, else None.

    None too where the model holds another recurrent module, or one of torch.nn's single-step cells.
    """
    recurrent = [m for m in model.modules() if find_cell(m) is not None or isinstance(m, nn.RNNCellBase)]
    if len(recurrent) != 1 or isinstance(recurrent[0], nn.RNNCellBase):
        return None
    return recurrent[0] if _has_closed_form(recurrent[0]) else None


def _has_closed_form(layer: Any) -> bool:
    """Whether the influence can be carried through a recurrent layer by `layers_of_step`."""
    if layer.proj_size or layer.bidirectional or not isinstance(cell_of(layer), PointwiseCell):
        return False
    draws_masks = layer.num_layers > 1 and layer.dropout > 0 and layer.training
    own_parameters = all(isinstance(w, nn.Parameter) for own in _weights(layer) for w in own.values())  # no weight_norm
    return own_parameters and not draws_masks


def _weights(layer: Any) -> list[dict[str, Tensor]]:
    """Return the parameters of each layer of a stack in one direction, by short name."""
    return [weights_of(layer, cell_of(layer), depth, 0) for depth in range(layer.num_layers)]


@contextmanager
def _recording(model: nn.Module, layer: nn.Module | None) -> Iterator[StepRecord]:
    """Inside, hooks record the calls of the layer and of embeddings."""
    step = StepRecord(model)

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        given = Arguments.of(args, kwargs)
        step.calls += 1
        step.inputs = given.input if isinstance(given.input, Tensor) else None
        step.hx = given.hx

    def behind(_: nn.Module, args: Any, output: Any) -> None:
        step.after = components(output[1])

    def after(table: nn.Module, args: Any, output: Tensor) -> None:
        assert isinstance(table, nn.Embedding)
        step.tables.append((table, args[0], output))

    handles = []
    if layer is not None:
        handles = [layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_hook(behind)]
    handles += [m.register_forward_hook(after) for m in model.modules() if isinstance(m, nn.Embedding)]
    try:
        yield step
    finally:
        for handle in handles:
            handle.remove()
