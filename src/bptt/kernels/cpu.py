"""The fused loop on the CPU: a layer's forward and backward in one C++ call each (csrc/loops.h says how).

The specification is `reference.py`.
"""

import ctypes
import functools
import math
import os
import sys
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from bptt.cells import GRU, LSTM, Cell, Elman, PointwiseCell, State, Weights
from bptt.kernels.autocast import in_the_weights_format
from bptt.kernels.base import Sequences, Stack
from bptt.kernels.gate import look_readable, readable, resolved
from bptt.kernels.layer_kernel import Gradients, LayerKernel
from bptt.kernels.tape import Saved, is_lean, lean_tape
from bptt.kernels.walk import Walk

NOT_BUILT = "the native core was not built: install a C++ compiler, then bptt once more"
_SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"  # of a library; macOS is untested
# BPTT_CORE: another build of it, for the tests
_CORE = Path(os.environ.get("BPTT_CORE", Path(__file__).with_name("csrc") / f"libbptt{_SUFFIX}"))
_ELMAN = ("tanh", "relu", "sigmoid")  # the numbers that csrc/problem.h gives the cells: 0, 1, 2
_GATED: dict[type[Cell], int] = {GRU: 3, LSTM: 4}
_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
_FORMATS = (torch.float32, torch.float64)
_NUMBERS, _POINTERS = 10, 29  # that bptt_problem of csrc/problem.h has


class Cpu(LayerKernel):
    """Elman, GRU and LSTM in float32 and float64, padded, packed, with resets; everything else it leaves to the others."""

    name = "cpu"

    def __init__(self, bfloat16: bool = False) -> None:
        """With `bfloat16` the operands of the matrix products are rounded to it; sums, states and gates stay float32."""
        self.bfloat16 = bfloat16

    def run(self, stack: Stack, sequences: Sequences, state: State) -> tuple[Tensor, State]:
        """Under autocast with products in bfloat16, where the processor has them."""
        if not _in_autocast():
            return self._run(stack, sequences, state)
        kernel = _IN_BFLOAT16 if _in_bfloat16() else self
        return in_the_weights_format(kernel._run, stack, sequences, state)

    def refusal(self, stack: Stack, sequences: Sequences, state: State = ()) -> str | None:
        """Other cells, devices and number formats, and kinds of derivatives that bypass autograd."""
        reason = _unfit_derivative(sequences.x)  # first: torch.compile cannot compare the other reasons with NOT_BUILT
        if reason is None and _number(stack.cell) is None:
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
        outputs = [h, c, gates, candidate, h_last, c_last]
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
        d_state = [_empty(s) if state_wanted else None for s in state]
        d_weights = {name: _empty(weight) for name, weight in weights.items()}
        look = resolved if known else readable
        saved, given = tuple(look(saved, x.dtype)), readable((d_outputs, *d_final), x.dtype)
        none = [None] * (2 - len(state))
        outputs = [*saved, None, None, *given, *none, d_x, *d_state, *none, *map(d_weights.get, _WEIGHTS)]
        inputs = _inputs(walk, x, state, weights, look)
        _native().run(cell, walk, inputs, outputs, backward=True, bfloat16=self.bfloat16)
        return Gradients(d_x, tuple(d_state), d_weights)


_IN_BFLOAT16 = Cpu(bfloat16=True)


def _in_autocast() -> bool:
    """Whether autocast of the CPU is in force; the first question is the cheaper one."""
    return torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled("cpu")


def _in_bfloat16() -> bool:
    """Whether autocast asks for it, and the processor has it."""
    return torch.get_autocast_dtype("cpu") == torch.bfloat16 and _native().has_bfloat16


def _number(cell: Cell) -> int | None:
    """The cell's number in csrc/problem.h; a class of the user's own has none, also if derived: its equations may differ."""
    return _ELMAN.index(cell.nonlinearity) if type(cell) is Elman else _GATED.get(type(cell))


def serves(cell: Cell, x: Tensor, weights: Weights) -> bool:
    """Whether the core has this cell, and the device and number format of x and the weights."""
    return (
        _number(cell) is not None
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
    _native().run(cell, walk, _inputs(walk, x, state, weights), [h, c, gates], h_is_known=True)
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
    saved = tuple(readable(saved, x.dtype))
    states = tuple(s for s in saved[: len(state)] if s is not None)
    delta, d_start = tuple(map(_empty, states)), tuple(map(_empty, state))
    d_x = _empty(x) if x_wanted else None
    given = readable((d_outputs, *d_final), x.dtype)
    none = [None] * (2 - len(state))
    outputs = [*saved, None, None, *given, *none, d_x, *d_start, *none, *[None] * len(_WEIGHTS), *delta]
    _native().run(cell, walk, _inputs(walk, x, state, weights), outputs, backward=True)
    return Sensitivity(states, delta, d_start, d_x)


def _empty(tensor: Tensor) -> Tensor:
    return tensor.new_empty(*tensor.shape)


def _inputs(walk: Walk, x: Tensor, state: State, weights: Weights, look: Any = readable) -> list[Tensor | None]:
    """What csrc/problem.h has from `offsets` to `c0`; `look` is the gate that they pass."""
    offsets = [None] if walk.offsets is None else readable([walk.offsets], torch.int64)
    cut = [None] if walk.cut is None else readable([walk.cut], torch.bool)
    return offsets + cut + look((x, *map(weights.get, _WEIGHTS), *state, *[None] * (2 - len(state))), x.dtype)


def _unfit_numbers(stack: Stack, sequences: Sequences, state: State) -> str | None:
    """Why the core cannot compute with these tensors; what it is given it takes at its word, so here all is checked."""
    x, autocast = sequences.x, _in_autocast()
    every = [w for directions in stack.weights for weights in directions for w in weights.values()]
    inside = every[0].dtype if autocast else x.dtype  # under autocast `LayerKernel.run` converts the input
    if not x.is_cpu or inside not in _FORMATS or not x.numel():
        return f"it runs float32 and float64 on the CPU, not {x.numel()} numbers of {inside} on {x.device}"
    if x.layout is not torch.strided:
        return f"it reads strided tensors, not {x.layout}"
    if not look_readable(every, inside):
        return "the weights are not plain tensors of the input's number format and device"
    if not all(look_readable([s], s.dtype) for s in state) if autocast else not look_readable(state, inside):
        return "the state is not of plain tensors of the input's number format and device"
    if autocast and inside == torch.float64:
        return "under autocast float64 is left to torch"
    if sequences.batch_sizes is not None and not _packable(sequences.batch_sizes, x.shape[0]):
        return "the batch sizes are not those of a packed sequence: positive, never growing, as many rows in all"
    return None


def _unfit_derivative(x: Tensor) -> str | None:
    """Why this call may ask for a derivative, or a recording, that only torch's own operators give."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func and forward-mode derivatives go through torch's own operators"
    if torch.compiler.is_compiling():
        return "torch.compile goes through torch's own operators"
    recorded = torch._C._get_tracing_state() is not None or is_in_torch_dispatch_mode()
    if recorded or type(x) not in (Tensor, Parameter):
        return "tracing, fake tensors and subclasses of Tensor go through torch's own operators"
    return None


def _packable(sizes: Tensor, rows: int) -> bool:
    counts = sizes.tolist()
    return counts[-1] > 0 and sum(counts) == rows and counts == sorted(counts, reverse=True)


class Native(NamedTuple):
    """The native core, the address of torch's own thread pool, and how many cores there are.

    It takes torch's number of threads, but not more than there are cores: a member of a team that waits for a core holds up
    the others.
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
        inputs: list[Tensor | None],
        outputs: list[Tensor | None],
        *,
        backward: bool = False,
        h_is_known: bool = False,
        bfloat16: bool = False,
    ) -> None:
        """Run forward or backward, with the pointers of csrc/problem.h in their order; those at the end may be left out.

        The caller keeps the tensors alive: the pointer to a temporary one would dangle.

        Raises:
            MemoryError: there is none left for the working memory.
        """
        _, _, x, w_ih, _, _, _, w_hr, *_ = inputs
        number = _number(cell)
        assert number is not None
        assert x is not None
        assert w_ih is not None
        number_format = 1 if x.dtype == torch.float64 else 2 * bfloat16
        rows, width = w_ih.shape
        numbers = (
            number, number_format, walk.length, walk.batch, width, rows // cell.gates,
            0 if w_hr is None else w_hr.shape[0], walk.reverse, h_is_known, min(torch.get_num_threads(), self.cores),
        )  # fmt: skip
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in (*inputs, *outputs)]
        problem = array("q", (*numbers, *pointers, *[0] * (_POINTERS - len(pointers))))
        code = self.core.bptt_run(problem.buffer_info()[0], backward, self.parallel_for)
        if code == 2:
            raise MemoryError("the native core found no memory for its work: take shorter or fewer sequences at a time")
        if code:
            raise RuntimeError(f"the native core failed ({code}): pass backend='reference', and report it")

    @property
    def instructions(self) -> str:
        """The instruction set that it chose: avx512, avx2 or baseline."""
        return str(self.core.bptt_isa().decode())


@functools.cache
def library() -> Native | None:
    """The native core, loaded on first use; None if it was not built, or does not fit torch or this file."""
    if not _CORE.exists():
        return None
    try:
        core = ctypes.CDLL(str(_CORE))
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu{_SUFFIX}"))
        parallel_for = ctypes.cast(torch_cpu.torch_parallel_for, ctypes.c_void_p)
    except (OSError, AttributeError):
        return None
    if not hasattr(core, "bptt_has_bfloat16") or core.bptt_problem_size() != 8 * (_NUMBERS + _POINTERS):
        return None  # built from another version's source
    core.bptt_units.argtypes, core.bptt_units.restype = (ctypes.c_int64, ctypes.c_int64), ctypes.c_int64
    core.bptt_run.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
    core.bptt_isa.restype = ctypes.c_char_p
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Native(core, parallel_for, cores)


def _native() -> Native:
    native = library()
    assert native is not None  # else `refusal` had said so
    return native
