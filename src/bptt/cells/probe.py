"""Trying out a `pointwise` of the user's own on made-up numbers, before a gradient is taken from it.

The kernels run `pointwise` once more on the way back and take its derivatives as diagonals over the units. Where that is
not so, nothing would fail: the gradient would be wrong, or missing. So, when a layer first runs:

    random numbers      every operator that it calls is looked at for torch's tag `nondeterministic_seeded`, and whether
                        torch's, Python's or NumPy's generator moved. Values cannot hide that. A second call with the same
                        numbers must give the same bits: generators, counters and memories of the cell's own.
    gradients           no input asks for a gradient, so an output that does has used a tensor of elsewhere that does.
    units, rows mixed   from which unit and row each number comes is followed operator by operator (`bptt.cells.origins`),
                        whatever branch the numbers take. Then, for what is not followed, by values: the units are split
                        in two in such ways that each pair of them is parted (by each binary digit of their index); one
                        part is changed to NaN, ±∞, ±huge and other random numbers: the other part of the result must
                        stay. Likewise the rows. NaN goes through every sum, mean, product, norm, softmax and shift, even
                        where the derivative is 0.
    changed in place    the arguments' versions and values are compared.
    partials            if stated by hand, they must be those that autograd finds.

What that proves. Of the code that ran: no operator drew random numbers, no tensor of elsewhere got a gradient, and no sum,
product or shift mixed units or rows. Behind an operator that is not followed (a convolution, NumPy) the proof is by values:
what such an operator mixes in a branch that none of these numbers leads to is not seen, nor is Python code that none of them
leads to. A function that itself raises an error for NaN or huge numbers is tried with the others.

It costs some thirty calls of `pointwise`, some milliseconds, once for each layer, dtype and device, and again when an
attribute of the cell is replaced, the layer goes from training to evaluation, or a tensor that the cell uses now asks for a
gradient. The generators are left as they were; a cell that counts its calls counts these too. Where autograd goes through
the plain loop (torch.func, torch.compile) each of these gets its right gradient, and nothing is tried.
"""

import functools
import inspect
import pickle
import random
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bptt.cells.base import Cell, Partials, PointwiseCell, State, Weights
from bptt.cells.contract import check_unchanged, checked_state, name_of, state_names, versions
from bptt.cells.elman import Elman
from bptt.cells.gru import GRU
from bptt.cells.lstm import LSTM
from bptt.cells.origins import SEVERAL, UNKNOWN, Mode, Origins
from bptt.torch_private import (
    compiler_loaded,
    dispatch_modes,
    dispatch_modes_suspended,
    is_traced,
    transforms_active,
    tree_leaves,
)

_PROVED = (Elman, GRU, LSTM)  # by the tests; a class derived from one of them is the user's own
# Of the numbers that stay: of the net inputs, and of the state, which at the first step is often 0.
_SIZES = ((1.0, 1.0), (1.0, 0.0), (0.1, 0.1), (10.0, 10.0), (100.0, 100.0))


class Watched(Mode):
    """Inside, every operator is inspected before it runs.

    Attributes:
        drawn: names of those that drew random numbers.
        foreign: tensors that came from elsewhere: neither given, nor made inside.
    """

    def __init__(self, cell: Cell, given: tuple[Tensor, ...] = ()) -> None:
        super().__init__()
        self.cell, self.given = cell, given
        self.drawn: list[str] = []
        self.foreign: list[Tensor] = []
        self._known = {id(t): t for t in given}  # which keeps them, so that no other gets the number

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note whether the operator draws random numbers or uses tensors from outside, and call it."""
        if torch.Tag.nondeterministic_seeded in operator.tags:
            self.drawn.append(operator.name().split("::")[-1])
        foreign = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and id(t) not in self._known]
        self.foreign += foreign
        try:
            made = operator(*args, **(kwargs or {}))
        except RuntimeError as error:
            self._explain(foreign, error)
            raise
        self._known |= {id(t): t for t in [*foreign, *tree_leaves(made)] if isinstance(t, Tensor)}
        return made

    def _explain(self, foreign: list[Tensor], error: RuntimeError) -> None:
        """Raise an error that names the cell's own tensor, if one does not fit; else return."""
        tensors = [t for t in foreign if t.dim()]
        if not tensors or not self.given:
            return
        like, one = self.given[0], tensors[0]
        raise RuntimeError(
            f"{name_of(self.cell)}.pointwise uses {_introduced(self.cell, one)} on {one.device}, which does not fit "
            f"the layer's, {like.dtype} of shape {tuple(like.shape)} (rows, gates, units) on {like.device}: "
            f"make it one value or one for each unit, and bring it there with .to(zx) ({error})"
        ) from error


class _Inputs(NamedTuple):
    """The arguments of `pointwise`; the vectors as [H], or as [rows, H]."""

    zx: Tensor
    zh: Tensor
    state: State
    vectors: State

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.zx, self.zh, *self.state, *self.vectors)

    def copies(self) -> "_Inputs":
        return _Inputs(
            self.zx.clone(),
            self.zh.clone(),
            tuple(s.clone() for s in self.state),
            tuple(v.clone() for v in self.vectors),
        )

    def of(self, rows: slice) -> "_Inputs":
        return _Inputs(self.zx[rows], self.zh[rows], tuple(s[rows] for s in self.state), self.vectors)

    def by_rows(self) -> "_Inputs":
        """The arguments with the vectors as [rows, H]."""
        return self._replace(vectors=tuple(v.expand(len(self.zx), -1) for v in self.vectors))


def uphold(layer: nn.Module, cell: Cell, weights: Weights) -> None:
    """Refuse a pointwise cell of the user's own that does not keep the contract; once for each layer and state of the cell.

    Args:
        layer: the layer that runs it, for which is remembered what was tried.
        weights: the parameters of one layer and direction by short name: their sizes, dtype and device count.

    Raises:
        ValueError, TypeError: see this module's header, and `checked_state`; what `pointwise` itself raises comes through.
    """
    if type(cell) in _PROVED or not isinstance(cell, PointwiseCell) or _is_traced():
        return
    weight = weights["weight_hh"]
    if type(weight) not in (Tensor, nn.Parameter) or weight.is_meta:  # nothing to try it on
        return
    seen, signs = _tried.get(layer), _signs(layer, cell, weight)
    if seen is not None and seen.holds(signs):
        return
    used = _Trial(cell, weights).run()
    _tried[layer] = _Tried(tuple(map(_held, signs)), tuple(map(weakref.ref, used)))


def refuse_random(cell: Cell, x: Tensor, state: State, weights: Weights) -> None:
    """Refuse a general cell whose step draws random numbers, for whoever runs it a second time.

    Raises ValueError. The generators are left as they were.
    """
    with (
        _as_the_kernels_run(x.device),
        torch.no_grad(),
        _generators_kept(x.device) as moved,
        Watched(cell) as watched,
    ):
        cell.step(x.clone(), tuple(s.clone() for s in state), weights)
        drawn = [*watched.drawn, *moved()]
    if drawn:
        raise ValueError(
            f"{name_of(cell)}.step draws random numbers ({drawn[0]}), so what is shown would belong to another draw than "
            "the training step's: give the noise to the layer as part of its input, or switch it off while looking"
        )


class _Tried(NamedTuple):
    """What a trial has covered: the signs of layer and cell, and the tensors from outside that wanted no gradient."""

    signs: tuple[Any, ...]
    constants: tuple["weakref.ref[Tensor]", ...]

    def holds(self, signs: list[Any]) -> bool:
        """Whether nothing has changed since the trial."""
        same = len(signs) == len(self.signs) and all(_released(a) is b for a, b in zip(self.signs, signs, strict=True))
        return same and not any((t := ref()) is not None and t.requires_grad for ref in self.constants)


_tried: "weakref.WeakKeyDictionary[nn.Module, _Tried]" = weakref.WeakKeyDictionary()


def _signs(layer: nn.Module, cell: PointwiseCell, weight: Tensor) -> list[Any]:
    """Whatever may decide on the result: objects that stay identical as long as nothing is replaced."""
    own = list(getattr(cell, "__dict__", {}).values())
    modes = [module.training for module in own if isinstance(module, nn.Module)]
    place = sys.intern(f"{weight.device} {tuple(weight.shape)}")
    return [cell, type(cell), layer.training, weight.dtype, place, *own, *modes]


def _held(sign: Any) -> Any:
    """A weak reference, where there can be one, so that what refers to the layer is not kept alive."""
    try:
        return weakref.ref(sign)
    except TypeError:
        return sign


def _released(held: Any) -> Any:
    return held() if isinstance(held, weakref.ref) else held


def _is_traced() -> bool:
    return (
        torch.compiler.is_compiling()
        or transforms_active()
        or is_traced()
        or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
    )


@dataclass
class _Trial:
    """A trial of one cell in the sizes, dtype and device of one layer."""

    cell: PointwiseCell
    weights: Weights
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self) -> None:
        weight = self.weights["weight_hh"]
        self.like, self.units, self.width = weight.detach(), weight.shape[0] // self.cell.gates, weight.shape[1]
        self.parts = _halves(self.units)  # K,H
        self.rows = self._distinct(len(_SIZES) * max(1, len(self.parts)))

    def _distinct(self, rows: int) -> int:
        """The smallest number, `rows` or a little more, that is the size of no other axis."""
        return next(n for n in range(rows, rows + 3) if n not in (self.units, self.cell.gates))

    def run(self) -> list[Tensor]:
        """Try `pointwise` out; return the tensors from outside that it used and that want no gradient."""
        with ExitStack() as stack:
            stack.enter_context(_as_the_kernels_run(self.like.device))
            inputs = self._inputs()
            after, used = self._first(inputs)
            self._again(inputs, after)
            self._rowwise(inputs, after)
            if type(self.cell).partials is not PointwiseCell.partials:
                self._partials(inputs)
            self._followed(inputs)
            with torch.no_grad(), warnings.catch_warnings(), _generators_kept(self.like.device):
                warnings.simplefilter("ignore")  # of NumPy, about NaN
                self._rows_apart(inputs)  # first, as the other changes rows differently
                self._units_apart(inputs.by_rows())
        return used

    def _inputs(self) -> _Inputs:
        many = -(-self.rows // len(_SIZES))
        net, old = torch.tensor(_SIZES, device="cpu").repeat_interleave(many, 0)[: self.rows].to(self.like).unbind(1)
        zx, zh = (self._random(self.rows, self.cell.gates, self.units) * net[:, None, None] for _ in range(2))
        widths = [self.width, *[self.units] * (len(self.cell.states) - 1)]
        state = tuple(self._random(self.rows, width) * old[:, None] for width in widths)
        vectors = tuple(self.weights[name].detach().clone() for name in self.cell.vectors)
        return _Inputs(zx, zh, state, vectors)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device="cpu").to(self.like)

    def _call(self, inputs: _Inputs) -> State:
        after: State = self.cell.pointwise(inputs.zx, inputs.zh, inputs.state, *inputs.vectors)
        return after

    def _refuse(self, what: str) -> None:
        raise ValueError(f"{name_of(self.cell)}.pointwise {what}")

    def _first(self, inputs: _Inputs) -> tuple[State, list[Tensor]]:
        """Call `pointwise` once; return its result and the tensors from outside that it used. Its own errors pass."""
        given = inputs.copies()
        written = versions(given.tensors)
        with _generators_kept(self.like.device) as moved, Watched(self.cell, given.tensors) as watched:
            after: Any = self._call(given)
            drawn = [*watched.drawn, *moved()]
        if drawn:
            self._refuse(
                f"draws random numbers ({drawn[0]}): it is run again on the way back, where it would draw others, and the "
                "gradient would be wrong. Give the noise to the layer as part of its input, or derive from bptt.Cell and "
                "write `step`, which is run once"
            )
        after = checked_state(self.cell, "pointwise", after, self._wanted(inputs))
        self._unchanged(given, inputs, written)
        for component in after:
            if component.requires_grad:
                self._refuse_closed_over(component)
        return after, [t for t in watched.foreign if not t.requires_grad]

    def _wanted(self, inputs: _Inputs) -> State:
        """Return a tensor of the wanted shape for each component of the result, in which h is not yet projected."""
        return (inputs.zx[:, 0], *inputs.state[1:])

    def _unchanged(self, given: _Inputs, inputs: _Inputs, written: tuple[int, ...]) -> None:
        names = ("zx", "zh", *state_names(self.cell), *self.cell.vectors)
        # The values too: what is written to `.data` is not counted.
        same = (int(not torch.equal(t, before)) for t, before in zip(given.tensors, inputs.tensors, strict=True))
        check_unchanged(self.cell, "pointwise", names, written, versions(given.tensors))
        check_unchanged(self.cell, "pointwise", names, (0,) * len(names), same)

    def _refuse_closed_over(self, component: Tensor) -> None:
        leaf = next(leaves_of(component), component)
        self._refuse(
            f"uses {_introduced(self.cell, leaf)}, which asks for a gradient but is no argument, so that it would get none: "
            "one value per unit is named in `vectors`, which the layer owns and passes on; a constant is detached "
            "(requires_grad=False); for anything else derive from bptt.Cell and write `step`"
        )

    def _again(self, inputs: _Inputs, after: State) -> None:
        """Refuse a `pointwise` whose second call, without a graph, gives other bits than the first."""
        with _generators_kept(self.like.device), torch.no_grad():
            again = self._call(inputs.copies())
        if not all(_same_bits(a, b) for a, b in zip(after, again, strict=True)):
            self._refuse(
                "gives another result when it is called again with the same numbers (a generator, a counter or a memory of "
                "its own): it is run again on the way back, and the gradient would be wrong. Keep what changes from step "
                "to step in a component of `states`, or give it to the layer as part of its input"
            )

    def _rowwise(self, inputs: _Inputs, after: State) -> None:
        """Check the result for a single row, and for vectors as [rows, H], as `partials` passes them."""
        one = inputs.of(slice(1))
        checked_state(self.cell, "pointwise", self._call(one.copies()), self._wanted(one))
        if not self.cell.vectors:
            return
        by_rows = checked_state(self.cell, "pointwise", self._call(inputs.by_rows()), self._wanted(inputs))
        moved = self._moved(after, by_rows, torch.ones_like(inputs.zx[:, 0], dtype=torch.bool))
        if moved is not None:
            self._refuse(
                f"takes its vectors as [H] alone: {moved} when they came as [rows, H], the same in each row, as they do on "
                "the way back: let the units be their last axis (leak * state[0], without adding axes)"
            )

    def _partials(self, inputs: _Inputs) -> None:
        """Refuse hand-written partials that differ from autograd's, at numbers of size 1 (elsewhere most vanish)."""
        few = inputs.of(slice(max(1, len(self.parts))))
        stated = self.cell.partials(few.zx, few.zh, few.state, *few.vectors)
        found = PointwiseCell.partials(self.cell, few.zx, few.zh, few.state, *few.vectors)
        for name, ours, theirs in _pairs(self.cell, stated, found):
            error = (ours - theirs).nan_to_num().norm() / theirs.nan_to_num().norm().clamp_min(1)
            if error > torch.finfo(self.like.dtype).eps ** 0.5:
                raise ValueError(
                    f"{name_of(self.cell)}.partials gives another {name} than the derivative of `pointwise` (relative error "
                    f"{float(error):.1g}): mend it, or leave it out, and autograd finds it. A gradient that is meant to "
                    "differ (a surrogate) belongs into `pointwise`, as a torch.autograd.Function"
                )

    def _followed(self, inputs: _Inputs) -> None:
        """Refuse mixed units or rows by following origins, whatever branch the numbers take."""
        for what, axis in (("hidden units", -1), ("rows of the batch", 0)):
            given, maps = inputs.copies(), [self._origins(t, axis) for t in inputs.tensors]
            if axis == -1 and self.width != self.units:
                maps[2].fill_(SEVERAL)  # a projected h is made of all units
            if axis == 0:
                maps[2 + len(inputs.state) :] = [torch.zeros_like(m) for m in maps[2 + len(inputs.state) :]]
            with _generators_kept(self.like.device), Origins(list(zip(given.tensors, maps, strict=True))) as followed:
                after = self._call(given)
            for name, component in zip(self.cell.states, after, strict=True):
                origin = followed.of(component)
                other = (origin != self._origins(component, axis)) & (origin != 0) & (origin != UNKNOWN)
                if other.any():
                    row, unit = other.nonzero()[0].tolist()
                    self._refuse_mixing(what, f"{name} of unit {unit} in row {row} is computed from those of others")

    def _origins(self, tensor: Tensor, axis: int) -> Tensor:
        """A map of the tensor's shape with k + 1 at each place k along the axis."""
        places = torch.arange(1, tensor.shape[axis] + 1, dtype=torch.int32, device="cpu")
        places = places if axis == -1 else places.view(-1, *[1] * (tensor.dim() - 1))
        return places.expand(tensor.shape).contiguous()

    def _refuse_mixing(self, what: str, how: str) -> None:
        self._refuse(
            f"mixes {what}: {how}. It must act on each unit of each row alone, since the gradient is taken as a diagonal: "
            "derive from bptt.Cell and write `shapes` and `step` instead"
        )

    def _units_apart(self, inputs: _Inputs) -> None:
        """Refuse mixed units by values: changing some must leave the others. (A projected h, which none reads, changes.)"""
        projected = self.width != self.units
        if not len(self.parts):
            return
        units = self.parts[torch.arange(self.rows, device="cpu") % len(self.parts)].to(self.like.device)  # R,H
        before = self._call(inputs.copies())
        for value in self._values():
            self._change(inputs, before, units, torch.ones_like(units) if projected else units, value, "hidden units")

    def _rows_apart(self, inputs: _Inputs) -> None:
        """Refuse mixed rows by values: changing some of a few rows must leave the others."""
        n = self._distinct(len(_SIZES) + 1)
        few = inputs.of(slice(None, None, max(1, self.rows // n))).of(slice(n)).by_rows()
        before, every = self._call(few.copies()), torch.ones_like(few.zx[:, 0], dtype=torch.bool)
        for rows in _halves(len(few.zx)).to(self.like.device):
            changed = every & rows[:, None]
            for value in self._values(few=True):
                self._change(few, before, changed, changed, value, "rows of the batch")

    def _values(self, few: bool = False) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield functions that replace numbers by NaN, infinities, huge and random ones."""
        huge = torch.finfo(self.like.dtype).max / 8
        for number in (torch.nan,) if few else (torch.nan, torch.inf, -torch.inf, huge, -huge):
            yield lambda t, number=number: torch.full_like(t, number)  # type: ignore[misc]
        for size in (10.0,) if few else (1e-3, 1.0, 1e3):
            yield lambda t, size=size: size * self._random(*t.shape)  # type: ignore[misc]

    def _change(
        self,
        inputs: _Inputs,
        before: State,
        where: Tensor,
        where_h: Tensor,
        value: Callable[[Tensor], Tensor],
        what: str,
    ) -> None:
        """Change the arguments at `where` [R, H] (of a projected h at `where_h`); refuse if the result changes elsewhere."""
        zx, zh = (torch.where(where[:, None], value(t), t) for t in (inputs.zx, inputs.zh))
        h = torch.where(where_h[:, : self.width], value(inputs.state[0]), inputs.state[0])
        rest, vectors = (
            tuple(torch.where(where, value(t), t) for t in ts) for ts in (inputs.state[1:], inputs.vectors)
        )
        try:
            after = self._call(_Inputs(zx, zh, (h, *rest), vectors))
        except Exception:  # its own test of its numbers: the other values are left
            return
        moved = self._moved(before, after, ~where)
        if moved is not None:
            self._refuse_mixing(what, f"{moved} when only those of others were changed")

    def _moved(self, before: State, after: State, stay: Tensor) -> str | None:
        """In words, what moved by more than rounding where `stay` is True; None if nothing did."""
        tolerance = min(1e4 * torch.finfo(self.like.dtype).eps, 0.05)
        for name, a, b in zip(self.cell.states, before, after, strict=True):
            moved = ~torch.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True) & stay
            if moved.any():
                row, unit = moved.nonzero()[0].tolist()
                return f"{name} of unit {unit} in row {row} went from {float(a[row, unit]):.4g} to {float(b[row, unit]):.4g}"
        return None


def _halves(n: int) -> Tensor:
    """bool [K, n] with, for each pair i, j, a row that has i and not j: each binary digit of the index, and its opposite."""
    digits = torch.arange(max(0, n - 1).bit_length(), device="cpu")
    ones = (torch.arange(n, device="cpu")[None, :] >> digits[:, None] & 1).bool()
    return torch.cat([ones, ~ones])


def _pairs(cell: PointwiseCell, stated: Partials, found: Partials) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (name, as stated, as found by autograd) for each derivative, with zeros for None."""
    zero = found.zx[0].new_zeros(())
    for s, name in enumerate(cell.states):
        yield f"∂{name}/∂zx", stated.zx[s], found.zx[s]
        yield f"∂{name}/∂zh", stated.zh[s], found.zh[s]
        for before, ours, theirs in zip(cell.states, stated.direct[s], found.direct[s], strict=True):
            yield f"∂{name}/∂{before}", zero if ours is None else ours, zero if theirs is None else theirs
        for v, vector in enumerate(cell.vectors):
            yield f"∂{name}/∂{vector}", stated.vectors[s][v], found.vectors[s][v]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


@contextmanager
def _as_the_kernels_run(device: torch.device) -> Iterator[None]:
    """Inside, gradients are on, autocast is off, and the caller's dispatch modes are suspended."""
    seen = dispatch_modes() > 0  # asked first: leaving the modes imports much
    compiles = compiler_loaded()  # a function that the user has compiled: its operators, one by one
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        dispatch_modes_suspended() if seen else nullcontext(),
        torch.compiler.set_stance("force_eager") if compiles else nullcontext(),
    ):
        yield


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[Callable[[], list[str]]]:
    """Restore torch's, Python's and NumPy's generators on leaving. Yields a function that names those drawn from."""
    generators: dict[str, Any] = {"torch's generator": (torch.get_rng_state, torch.set_rng_state)}
    generators |= {"Python's random": (random.getstate, random.setstate)}
    if device.type == "cuda":
        of_device = functools.partial(torch.cuda.set_rng_state, device=device)
        generators |= {"CUDA's generator": (functools.partial(torch.cuda.get_rng_state, device), of_device)}
    if "numpy.random" in sys.modules:
        numpy: Any = sys.modules["numpy.random"]
        generators |= {"NumPy's random": (numpy.get_state, numpy.set_state)}
    before = {name: state() for name, (state, _) in generators.items()}

    def moved() -> list[str]:
        return [name for name, (state, _) in generators.items() if not _equal(state(), before[name])]

    try:
        yield moved
    finally:
        for name, (_, put_back) in generators.items():
            put_back(before[name])


def _equal(a: Any, b: Any) -> bool:
    """Whether two states of a generator are equal."""
    return torch.equal(a, b) if isinstance(a, Tensor) else pickle.dumps(a) == pickle.dumps(b)


def leaves_of(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the leaves that get a gradient from `tensor`, or `tensor` itself if it is a leaf."""
    if tensor.grad_fn is None:
        if tensor.requires_grad:
            yield tensor
        return
    nodes: list[Any] = [tensor.grad_fn]
    met = set(nodes)
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            yield node.variable
        following = [n for n, _ in node.next_functions if n is not None and n not in met]
        met.update(following)
        nodes += following


def _introduced(cell: Cell, tensor: Tensor) -> str:
    """A tensor in words, with the name under which the cell's code knows it, or knows something computed from it."""
    kind = "Parameter" if isinstance(tensor, nn.Parameter) else "tensor"
    described = f"a {kind} of shape {tuple(tensor.shape)} and {tensor.dtype}"
    for name, value in _reachable(cell):
        if value is tensor:
            return f"{name}, {described}"
        if any(leaf is tensor for leaf in leaves_of(value)):
            return f"{name}, computed from {described}"
    return described


def _reachable(cell: Cell) -> Iterator[tuple[str, Tensor]]:
    """Yield the named tensors among the cell's attributes, and among what its functions, and those they call, close over."""
    yield from _tensors_in("self", getattr(cell, "__dict__", {}))
    functions: list[Any] = []
    for base in type(cell).__mro__[:-1]:
        yield from _tensors_in("self", vars(base))
        functions += vars(base).values()
    met: set[int] = set()
    while functions:
        function = functions.pop()
        if id(function) in met:
            continue
        met.add(id(function))
        try:
            closed = inspect.getclosurevars(inspect.unwrap(function))
        except (TypeError, ValueError):  # no function, or one whose variables are not filled yet
            continue
        variables = {**closed.globals, **closed.nonlocals}
        yield from _tensors_in("", variables)
        functions += [value for value in variables.values() if inspect.isfunction(value)]


def _tensors_in(owner: str, values: Any) -> Iterator[tuple[str, Tensor]]:
    for name, value in values.items():
        path = f"{owner}.{name}" if owner else str(name)
        if isinstance(value, Tensor):
            yield path, value
        elif isinstance(value, nn.Module):
            yield from ((f"{path}.{inner}", p) for inner, p in [*value.named_parameters(), *value.named_buffers()])
        elif isinstance(value, dict):
            yield from ((f"{path}[{key!r}]", item) for key, item in value.items() if isinstance(item, Tensor))
        elif isinstance(value, list | tuple):
            yield from ((f"{path}[{place}]", item) for place, item in enumerate(value) if isinstance(item, Tensor))
