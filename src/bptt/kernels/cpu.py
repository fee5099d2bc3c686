"""The fused loop on the CPU: a layer's forward and backward in one C++ call each (csrc/schedule.h says how).

The specification is `reference.py`.
"""

import ctypes
import functools
import math
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from bptt.cells import GRU, LSTM, Cell, Elman, PointwiseCell, State, Weights
from bptt.kernels.autocast import in_the_weights_format
from bptt.kernels.base import Sequences, Stack
from bptt.kernels.gate import look_readable, readable, resolved
from bptt.kernels.layer_kernel import Gradients, LayerKernel
from bptt.kernels.tape import Saved, is_lean, lean_tape
from bptt.kernels.walk import Walk
from bptt.torch_private import (
    any_autocast_active,
    forward_mode_active,
    is_dispatch_mode_active,
    is_traced,
    parallel_for_address,
    transforms_active,
)

NOT_BUILT = "the native core was not built: install a C++ compiler, then bptt once more"
_SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"  # of a library; macOS is untested
# BPTT_CORE: another build of it, for the tests
_CORE = Path(os.environ.get("BPTT_CORE", Path(__file__).with_name("csrc") / f"libbptt{_SUFFIX}"))
_ELMAN = ("tanh", "relu", "sigmoid")  # csrc/problem.h numbers the cells: 0, 1, 2
_GATED: dict[type[Cell], int] = {GRU: 3, LSTM: 4}
_WEIGHTS = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh", "weight_hr": "w_hr"}
_FORMATS = (torch.float32, torch.float64)
_DOUBLE, _BFLOAT16 = 1, 2  # its numbers of formats, beside 0
_SOMEWHERE = 1  # a pointer that is not null, where the core only asks which tensors there are
_NUMBERS = "cell format steps batch inputs hidden projected reverse h_is_known threads"
_POINTERS = """
    offsets reset x w_ih w_hh b_ih b_hh w_hr h0 c0 h c gates candidate h_last c_last
    d_h d_h_last d_c_last d_x d_h0 d_c0 d_w_ih d_w_hh d_b_ih d_b_hh d_w_hr delta_h delta_c
"""
_KEPT = ("h", "c", "gates", "candidate")
# The names of h and, where there are two components, of c.
_INITIAL, _D_INITIAL, _D_FINAL, _DELTA = (
    ("h0", "c0"),
    ("d_h0", "d_c0"),
    ("d_h_last", "d_c_last"),
    ("delta_h", "delta_c"),
)
Named = dict[str, Tensor | None]  # tensors by the names of the pointers to them


class Problem(ctypes.Structure):
    """`bptt_problem` of csrc/problem.h, which describes each field; a pointer that is not set is null."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _NUMBERS.split()),
        *((name, ctypes.c_void_p) for name in _POINTERS.split()),
    ]


class Cpu(LayerKernel):
    """Elman, GRU and LSTM in float32 and float64, padded, packed, with resets; everything else it leaves to the others."""

    name = "cpu"

    def __init__(self, bfloat16: bool = False) -> None:
        """With `bfloat16` the operands of the matrix products are rounded to it; sums, states and gates stay float32."""
        self.bfloat16 = bfloat16

    def run(self, stack: Stack, sequences: Sequences, state: State) -> tuple[Tensor, State]:
        """Run the stack; under CPU autocast multiply in bfloat16 where the processor can."""
        if not _in_autocast():
            return self._run(stack, sequences, state)
        kernel = _IN_BFLOAT16 if _in_bfloat16() else self
        return in_the_weights_format(kernel._run, stack, sequences, state)

    def refusal(self, stack: Stack, sequences: Sequences, state: State = ()) -> str | None:
        """Other cells, devices and number formats, and kinds of derivatives that bypass autograd."""
        reason = _unfit_derivative(sequences.x)  # first: torch.compile cannot compare the other reasons with NOT_BUILT
        if reason is None and _cell_number(stack.cell) is None:
            return f"the native core has no {stack.cell}"
        reason = reason or _unfit_numbers(stack, sequences, state)
        if reason is None and library() is None:
            return (
                "the native core does not fit this torch or this version of bptt: install bptt once more"
                if _CORE.exists()
                else NOT_BUILT
            )
        return reason

    def forward(
        self,
        cell: PointwiseCell,
        walk: Walk,
        x: Tensor,
        state: State,
        weights: Weights,
        keep: bool,
        known: bool = False,
    ) -> tuple[Tensor, State, Saved]:
        """Kept is what the step's derivative needs: the states; unless `lean_tape` the gates, and the GRU candidate's zh."""
        keep = keep and not is_lean()
        native, w_hh = _native(), weights["weight_hh"]
        (*form, _), (rows, P) = x.shape, w_hh.shape
        N, H = math.prod(form), rows // cell.gates
        h, h_last = x.new_empty(*form, P), _empty(state[0])
        c, c_last = (x.new_empty(N, H), _empty(state[1])) if len(state) == 2 else (None, None)
        gates, candidate = None, None
        if keep and cell.gates > 1:
            units = native.units(H, x.dtype == torch.float64)
            gates = x.new_empty(N, cell.gates, units)
            candidate = x.new_empty(N, units) if isinstance(cell, GRU) else None
        outputs = {"h": h, "c": c, "gates": gates, "candidate": candidate, "h_last": h_last, "c_last": c_last}
        inputs = _inputs(walk, x, state, weights, resolved if known else readable)
        native.run(cell, walk, inputs, outputs, bfloat16=self.bfloat16)
        return h, (h_last,) if c_last is None else (h_last, c_last), (h, c, gates, candidate)

    def backward(
        self,
        cell: PointwiseCell,
        walk: Walk,
        x: Tensor,
        state: State,
        weights: Weights,
        saved: Saved,
        d_outputs: Tensor | None,
        d_final: tuple[Tensor | None, ...],
        x_wanted: bool,
        state_wanted: bool = True,
        known: bool = False,
    ) -> Gradients:
        """The gradients of all weights; of x only if wanted, for that is a product of its own."""
        d_x = _empty(x) if x_wanted else None
        d_state = tuple(_empty(s) if state_wanted else None for s in state)
        d_weights = {name: _empty(weight) for name, weight in weights.items()}
        look = resolved if known else readable
        outputs = (
            _saved(saved, x, look)
            | _given(d_outputs, d_final, x)
            | {"d_x": d_x}
            | dict(zip(_D_INITIAL, d_state, strict=False))
        )
        outputs |= {f"d_{_WEIGHTS[name]}": d_weight for name, d_weight in d_weights.items()}
        inputs = _inputs(walk, x, state, weights, look)
        _native().run(cell, walk, inputs, outputs, backward=True, bfloat16=self.bfloat16)
        return Gradients(d_x, d_state, d_weights)


_IN_BFLOAT16 = Cpu(bfloat16=True)


def _in_autocast() -> bool:
    """Whether autocast of the CPU is in force; the first question is the cheaper one."""
    return any_autocast_active() and torch.is_autocast_enabled("cpu")


def _in_bfloat16() -> bool:
    """Whether autocast asks for it, and the processor has it."""
    return torch.get_autocast_dtype("cpu") == torch.bfloat16 and _native().has_bfloat16


def _cell_number(cell: Cell) -> int | None:
    """The cell's number in csrc/problem.h; a class of the user's own has none, also if derived: its equations may differ."""
    return _ELMAN.index(cell.nonlinearity) if type(cell) is Elman else _GATED.get(type(cell))


def serves(cell: Cell, x: Tensor, weights: Weights) -> bool:
    """Whether the core has this cell, and the device and number format of x and the weights."""
    return (
        _cell_number(cell) is not None
        and x.dtype in _FORMATS
        and look_readable((x, *weights.values()), x.dtype)
        and x.numel() > 0
        and library() is not None
    )


class Sensitivity(NamedTuple):
    """What `sensitivity` finds.

    Attributes:
        states: after each row, [N, P] and for the LSTM [N, H].
        delta: ∂L/∂state after each row, of the same shapes.
        d_start: ∂L/∂initial state, [B, ·] each.
        d_x: [N, D], None if nobody asked.
    """

    states: State
    delta: State
    d_start: State
    d_x: Tensor | None


def states(cell: PointwiseCell, walk: Walk, x: Tensor, state: State, weights: Weights) -> State:
    """The state after each row of x [N, D]: [N, P], and for the LSTM [N, H]."""
    with lean_tape():
        _, _, saved = Cpu().forward(cell, walk, x, state, weights, keep=True)
    return tuple(s for s in saved if s is not None)


def replay(cell: PointwiseCell, walk: Walk, x: Tensor, state: State, weights: Weights, h: Tensor) -> Saved:
    """What `Cpu.forward` keeps, for a layer whose outputs h [N, P] are known: one product over all rows, without a loop."""
    (h,) = readable([h], x.dtype)
    if len(state) == 1:
        return h, None, None, None  # nothing else is needed: backward finds a block's gates in the same way
    c = x.new_empty(len(x), state[1].shape[1])
    gates = x.new_empty(len(x), cell.gates, _native().units(c.shape[1], x.dtype == torch.float64))
    _native().run(cell, walk, _inputs(walk, x, state, weights), {"h": h, "c": c, "gates": gates}, h_is_known=True)
    return h, c, gates, None


def sensitivity(
    cell: PointwiseCell,
    walk: Walk,
    x: Tensor,
    state: State,
    weights: Weights,
    saved: Saved,
    d_outputs: Tensor | None,
    d_final: State,
    x_wanted: bool,
) -> Sensitivity:
    """∂L/∂state of every step: the loop of `Cpu.backward`, which hands it out, without the gradients of the weights."""
    kept = _saved(saved, x, readable)
    states = tuple(s for name in ("h", "c")[: len(state)] if (s := kept[name]) is not None)
    delta, d_start = tuple(map(_empty, states)), tuple(map(_empty, state))
    d_x = _empty(x) if x_wanted else None
    outputs = kept | _given(d_outputs, d_final, x) | {"d_x": d_x}
    outputs |= dict(zip(_D_INITIAL, d_start, strict=False)) | dict(zip(_DELTA, delta, strict=False))
    _native().run(cell, walk, _inputs(walk, x, state, weights), outputs, backward=True)
    return Sensitivity(states, delta, d_start, d_x)


def _empty(tensor: Tensor) -> Tensor:
    return tensor.new_empty(*tensor.shape)


def _inputs(walk: Walk, x: Tensor, state: State, weights: Weights, look: Any = readable) -> Named:
    """Return what the core reads going forward, contiguous; `look` is the gate that the tensors pass."""
    names = ("x", *[_WEIGHTS[name] for name in weights], *_INITIAL[: len(state)])
    found: Named = dict(zip(names, look((x, *weights.values(), *state), x.dtype), strict=True))
    if walk.offsets is not None:
        (found["offsets"],) = readable([walk.offsets], torch.int64)
    if walk.reset is not None:
        (found["reset"],) = readable([walk.reset], torch.bool)
    return found


def _saved(saved: Saved, x: Tensor, look: Any) -> Named:
    """Return what `Cpu.forward` kept, by its names."""
    return dict(zip(_KEPT, look(saved, x.dtype), strict=True))


def _given(d_outputs: Tensor | None, d_final: tuple[Tensor | None, ...], x: Tensor) -> Named:
    """Return the gradients that come from outside, contiguous."""
    d_h, *d_last = readable((d_outputs, *d_final), x.dtype)
    return dict(zip(("d_h", *_D_FINAL), (d_h, *d_last), strict=False))


def _unfit_numbers(stack: Stack, sequences: Sequences, state: State) -> str | None:
    """Return why the core cannot compute with these tensors; it takes them at their word, so here all is checked."""
    weights = [w for directions in stack.weights for weights in directions for w in weights.values()]
    autocast = _in_autocast()
    inside = weights[0].dtype if autocast else sequences.x.dtype  # under autocast `run` converts the input
    return (
        _unfit_input(sequences.x, inside)
        or _unfit_parameters(weights, state, inside, autocast)
        or (None if sequences.batch_sizes is None else _unfit_batch_sizes(sequences.batch_sizes, sequences.x.shape[0]))
    )


def _unfit_input(x: Tensor, inside: torch.dtype) -> str | None:
    if not x.is_cpu or inside not in _FORMATS or not x.numel():
        return f"it runs float32 and float64 on the CPU, not {x.numel()} numbers of {inside} on {x.device}"
    return None if x.layout is torch.strided else f"it reads strided tensors, not {x.layout}"


def _unfit_parameters(weights: list[Tensor], state: State, inside: torch.dtype, autocast: bool) -> str | None:
    """Return why not these weights and this state; under autocast a state may have any one number format."""
    if not look_readable(weights, inside):
        return "the weights are not plain tensors of the input's number format and device"
    if not (all(look_readable([s], s.dtype) for s in state) if autocast else look_readable(state, inside)):
        return "the state is not of plain tensors of the input's number format and device"
    return "under autocast float64 is left to torch" if autocast and inside == torch.float64 else None


def _unfit_batch_sizes(sizes: Tensor, rows: int) -> str | None:
    if _packable(sizes, rows):
        return None
    return "the batch sizes are not those of a packed sequence: positive, never growing, as many rows in all"


def _unfit_derivative(x: Tensor) -> str | None:
    """Why this call may ask for a derivative, or a recording, that only torch's own operators give."""
    if transforms_active() or forward_mode_active():
        return "torch.func and forward-mode derivatives go through torch's own operators"
    if torch.compiler.is_compiling():
        return "torch.compile goes through torch's own operators"
    recorded = is_traced() or is_dispatch_mode_active()
    if recorded or type(x) not in (Tensor, Parameter):
        return "tracing, fake tensors and subclasses of Tensor go through torch's own operators"
    return None


def _packable(sizes: Tensor, rows: int) -> bool:
    counts = sizes.tolist()
    return counts[-1] > 0 and sum(counts) == rows and counts == sorted(counts, reverse=True)


class Native(NamedTuple):
    """The native core, the address of torch's own thread pool, and how many cores there are.

    More threads than cores would be slow: a worker that waits for a core holds up the others of its group.
    """

    core: Any
    parallel_for: ctypes.c_void_p
    cores: int

    @property
    def has_bfloat16(self) -> bool:
        """Whether the processor multiplies numbers in bfloat16."""
        return bool(self.core.bptt_has_bfloat16())

    def units(self, hidden: int, is_double: bool) -> int:
        """`hidden` rounded up to whole registers."""
        return int(self.core.bptt_units(hidden, is_double))

    def run(
        self,
        cell: PointwiseCell,
        walk: Walk,
        inputs: Named,
        outputs: Named,
        *,
        backward: bool = False,
        h_is_known: bool = False,
        bfloat16: bool = False,
    ) -> None:
        """Run forward or backward on the tensors of csrc/problem.h, by its names; the others are null.

        The caller keeps the tensors alive: the pointer to a temporary one would dangle.

        Raises:
            MemoryError: there is none left for the working memory.
        """
        x, w_ih, w_hr = inputs["x"], inputs["w_ih"], inputs.get("w_hr")
        assert x is not None
        assert w_ih is not None
        number = _cell_number(cell)
        assert number is not None
        number_format = _DOUBLE if x.dtype == torch.float64 else _BFLOAT16 * bfloat16
        rows, width = w_ih.shape
        projected = 0 if w_hr is None else w_hr.shape[0]
        pointers = {name: t.data_ptr() for tensors in (inputs, outputs) for name, t in tensors.items() if t is not None}
        problem = Problem(
            number, number_format, walk.length, walk.batch, width, rows // cell.gates, projected,
            walk.reverse, h_is_known, self.threads, **pointers,
        )  # fmt: skip
        code = self.core.bptt_run(ctypes.byref(problem), backward, self.parallel_for)
        if code == 2:
            raise MemoryError("the native core found no memory for its work: take shorter or fewer sequences at a time")
        if code:
            raise RuntimeError(f"the native core failed ({code}): pass backend='reference', and report it")

    @property
    def threads(self) -> int:
        """Torch's number of threads, but at most the cores there are."""
        return min(torch.get_num_threads(), self.cores)

    @property
    def instructions(self) -> str:
        """The instruction set that it chose: avx512, avx2 or baseline."""
        return str(self.core.bptt_isa().decode())


class LayerSizes(NamedTuple):
    """What the native core's working memory for one layer depends on, beside the steps."""

    cell: PointwiseCell
    dtype: torch.dtype
    batch: int
    inputs: int
    hidden: int
    projected: int = 0

    @staticmethod
    def of(cell: PointwiseCell, weights: Weights, batch: int) -> "LayerSizes":
        """Return the sizes of the layer that has these weights."""
        w_ih, w_hr = weights["weight_ih"], weights.get("weight_hr")
        rows, inputs = w_ih.shape
        return LayerSizes(cell, w_ih.dtype, batch, inputs, rows // cell.gates, 0 if w_hr is None else w_hr.shape[0])


def workspace_bytes(sizes: LayerSizes, steps: int, *, lean: bool = False) -> int:
    """Return the bytes of working memory that a layer's forward or backward takes, whichever takes more.

    They are the C library's, not those of torch's allocator. 0 where the core is not built or has no such cell.

    Args:
        sizes: of the layer; its batch is padded. The backward gives the gradients of all weights and of the input.
        steps: T.
        lean: the forward keeps the states only, and the backward computes the gates again.
    """
    native, number = library(), _cell_number(sizes.cell)
    if native is None or number is None or sizes.dtype not in _FORMATS:
        return 0
    _, dtype, batch, inputs, hidden, projected = sizes
    problem = Problem(number, _DOUBLE * (dtype == torch.float64), steps, batch, inputs, hidden, projected)
    problem.threads = native.threads
    problem.gates = None if lean or sizes.cell.gates == 1 else _SOMEWHERE
    forward = native.core.bptt_workspace_bytes(ctypes.byref(problem), False)
    problem.d_x = problem.d_w_ih = _SOMEWHERE
    return max(forward, native.core.bptt_workspace_bytes(ctypes.byref(problem), True))


@functools.cache
def library() -> Native | None:
    """The native core, loaded on first use; None if it was not built, or does not fit torch or this file."""
    if not _CORE.exists():
        return None
    try:
        core = ctypes.CDLL(str(_CORE))
    except OSError:
        return None
    parallel_for = parallel_for_address()
    if parallel_for is None:
        return None
    if not hasattr(core, "bptt_workspace_bytes") or core.bptt_problem_size() != ctypes.sizeof(Problem):
        return None  # built from another version's source
    core.bptt_units.argtypes, core.bptt_units.restype = (ctypes.c_int64, ctypes.c_int64), ctypes.c_int64
    core.bptt_run.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
    core.bptt_workspace_bytes.argtypes = (ctypes.c_void_p, ctypes.c_int64)
    core.bptt_workspace_bytes.restype = ctypes.c_int64
    core.bptt_isa.restype = ctypes.c_char_p
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Native(core, parallel_for, cores)


def _native() -> Native:
    native = library()
    assert native is not None  # else `refusal` had said so
    return native
