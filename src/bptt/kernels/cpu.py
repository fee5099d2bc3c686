"""The fused loop on the CPU: matrix product and pointwise function in one C++ kernel (csrc/), each thread on its own rows.

    forward    zx = W_ih x + b, one product over all rows (torch's); then the loop, which leaves h, c, and in zx's place
               what the backward needs
    backward   by blocks of steps, so that a block's d_z is still in the cache when the weight gradients, products over the
               rows of the block, read it

The specification is `reference.py`.
"""

import ctypes
import functools
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from bptt.cells import GRU, LSTM, Cell, Elman, PointwiseCell, State, Weights
from bptt.kernels.base import Sequences, Stack
from bptt.kernels.layered import Gradients, LayerKernel, Saved
from bptt.kernels.walk import Walk

NOT_BUILT = "the native core was not built: install a C++ compiler, then bptt once more"
_CORE = Path(__file__).with_name("csrc") / "libbptt.so"
_NUMBERS: dict[Cell, int] = {Elman("tanh"): 0, Elman("relu"): 1, Elman("sigmoid"): 2, GRU(): 3, LSTM(): 4}
_BLOCK_BYTES = 2**20  # of d_z in one block of the backward: about a second-level cache
_REGISTERS_BACKWARD = 4  # registers of units that the backward's product computes at a time (loops.h)


class Cpu(LayerKernel):
    """Elman, GRU and LSTM in float32 and float64, padded, packed, with resets; everything else it leaves to the others."""

    name = "cpu"

    def refusal(self, stack: Stack, sequences: Sequences) -> str | None:
        """Other cells, devices and number formats, projections, and kinds of derivatives that bypass autograd."""
        x = sequences.x
        if stack.cell not in _NUMBERS:
            return f"the native core has no {stack.cell}"
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or not x.numel():
            return f"it runs float32 and float64 on the CPU, not {x.numel()} numbers of {x.dtype} on {x.device}"
        if torch.is_autocast_enabled("cpu"):
            return "it knows no autocast"
        if "weight_hr" in stack.weights[0][0]:
            return "it knows no projection"
        if any(w.dtype != x.dtype or w.device != x.device for weights in stack.weights[0] for w in weights.values()):
            return "the weights are not of the input's number format and device"
        if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
            return "torch.func and forward-mode derivatives go through torch's own operators"
        if torch.compiler.is_compiling():
            return "torch.compile goes through torch's own operators"
        if (
            torch._C._get_tracing_state() is not None
            or is_in_torch_dispatch_mode()
            or type(x) not in (Tensor, Parameter)
        ):
            return "tracing, fake tensors and subclasses of Tensor go through torch's own operators"
        if library() is None:
            return "the native core does not fit this torch" if _CORE.exists() else NOT_BUILT
        return None

    def forward(
        self, cell: PointwiseCell, walk: Walk, x: Tensor, state: State, weights: Weights
    ) -> tuple[Tensor, State, Saved]:
        """The loop in C++."""
        N, H = len(x), weights["weight_hh"].shape[1]
        bias, bias_apart = _biases(cell, weights, H)
        z = F.linear(x, weights["weight_ih"], bias)
        h = x.new_empty(N, H)
        c = torch.empty_like(h) if len(state) == 2 else None
        extra = torch.empty_like(h) if isinstance(cell, GRU) else None
        problem = Problem(cell, walk, x.dtype, H, state)
        at_a_time = 4 if cell.gates == 1 else 1
        packed = _packed(weights["weight_hh"].unflatten(0, (cell.gates, H)), problem.lanes * at_a_time, problem.lanes)
        problem.run(backward=False, z=z, h=h, c=c, extra=extra, weight=packed, bias_apart=bias_apart)
        final = tuple(problem.last_rows(s) for s in (h, c) if s is not None)
        return h, final, (z if cell.gates > 1 else None, extra, h, c)

    def backward(
        self,
        cell: PointwiseCell,
        walk: Walk,
        x: Tensor,
        state: State,
        weights: Weights,
        saved: Saved,
        d_outputs: Tensor,
        d_final: State,
        x_wanted: bool,
    ) -> Gradients:
        """Block by block: the loop in C++, then the products over the block's rows."""
        z, extra, h, c = saved
        w_ih, w_hh = weights["weight_ih"], weights["weight_hh"]
        H, rows_of_gates = w_hh.shape[1], len(w_hh)
        problem = Problem(cell, walk, x.dtype, H, state)
        packed = _packed(w_hh.T.unsqueeze(0), problem.lanes * _REGISTERS_BACKWARD, problem.lanes)
        blocks = _blocks(walk, max(1, _BLOCK_BYTES // (rows_of_gates * x.element_size())))
        most = max(walk.spans[b - 1].stop - walk.spans[a].start for a, b in blocks)
        dz = x.new_empty(most, rows_of_gates)
        dz_hidden = dz if extra is None else torch.empty_like(dz)
        before = x.new_empty(most, H)
        d_state = tuple(d.clone(memory_format=torch.contiguous_format) for d in d_final)
        d_x = torch.empty_like(x, memory_format=torch.contiguous_format) if x_wanted else None
        found = {name: torch.zeros_like(w) for name, w in weights.items()}
        carried = dict(zip(("dh", "dc"), d_state, strict=False))
        d_outputs = d_outputs.contiguous()
        for first, last in blocks:
            problem.run(
                backward=True, first=first, last=last, z=z, extra=extra, h=h, c=c, weight=packed,
                d_outputs=d_outputs, dz=dz, dz_hidden=dz_hidden, before=before, **carried,
            )  # fmt: skip
            rows = slice(walk.spans[first].start, walk.spans[last - 1].stop)
            n = rows.stop - rows.start
            found["weight_ih"].addmm_(dz[:n].T, x[rows])
            found["weight_hh"].addmm_(dz_hidden[:n].T, before[:n])
            if "bias_ih" in weights:
                found["bias_ih"] += dz[:n].sum(0)
                if extra is not None:
                    found["bias_hh"] += dz_hidden[:n].sum(0)
            if d_x is not None:
                torch.mm(dz[:n], w_ih, out=d_x[rows])
        if "bias_ih" in weights and extra is None:
            found["bias_hh"].copy_(found["bias_ih"])
        return Gradients(d_x, d_state, found)


class Problem:
    """One layer in one direction, in the form of csrc/problem.h; it holds what the kernel's pointers point to."""

    def __init__(self, cell: Cell, walk: Walk, dtype: torch.dtype, hidden: int, state: State) -> None:
        batch = len(state[0])
        native = library()
        assert native is not None
        self._native, self._is_double = native, int(dtype == torch.float64)
        self.lanes = native.core.bptt_lanes(ctypes.c_int64(self._is_double))
        sizes = [rows.stop - rows.start for rows in walk.spans]
        self._reverse, self._batch = walk.reverse, batch
        self._lengths = None if sizes[-1] == batch else _lengths(sizes, batch)
        borders = _borders(self._lengths or [1] * batch, min(torch.get_num_threads(), batch))
        self._offsets = torch.tensor([0, *accumulate(sizes)])
        self._tensors: dict[str, Tensor | None] = {
            "offsets": self._offsets,
            "borders": torch.tensor(borders),
            "cut": None if walk.cut is None else walk.cut.contiguous(),
            "zeros": torch.zeros(hidden, dtype=dtype),
            "h0": state[0].contiguous(),
            "c0": state[1].contiguous() if len(state) == 2 else None,
        }
        self._numbers = (
            _NUMBERS[cell], self._is_double, hidden, len(sizes), batch, int(walk.reverse), len(borders) - 1,
        )  # fmt: skip

    def run(self, backward: bool, first: int = 0, last: int = 0, **tensors: Tensor | None) -> None:
        """Fill in the struct and run; `first` and `last` are the steps of a block, for the backward."""
        struct = _Struct(*self._numbers, first=first, last=last)
        for name, tensor in (self._tensors | tensors).items():
            assert tensor is None or tensor.is_contiguous()
            setattr(struct, name, None if tensor is None else tensor.data_ptr())
        if self._native.core.bptt_run(ctypes.byref(struct), ctypes.c_int64(backward), self._native.parallel_for):
            raise RuntimeError("the native core failed: pass backend='reference', and report it")

    def last_rows(self, states: Tensor) -> Tensor:
        """The state after each sequence's last step in the direction of the walk, [B, H], from that after all rows."""
        if self._reverse:
            return states[: self._batch].clone()
        if self._lengths is None:
            return states[len(states) - self._batch :].clone()
        return states[self._offsets[torch.tensor(self._lengths) - 1] + torch.arange(self._batch)]


def _biases(cell: Cell, weights: Weights, H: int) -> tuple[Tensor | None, Tensor | None]:
    """The bias that enters with zx, and for the GRU that of its candidate's zh, which must stay apart."""
    if "bias_ih" not in weights:
        return None, None
    if not isinstance(cell, GRU):
        return weights["bias_ih"] + weights["bias_hh"], None
    apart = weights["bias_hh"][2 * H :]
    return weights["bias_ih"] + F.pad(weights["bias_hh"][: 2 * H], (0, H)), apart.contiguous()


def _packed(weight: Tensor, width: int, lanes: int) -> Tensor:
    """[G, H, K] → [H/width, K, width/lanes, G, lanes], H filled up with zeros: the order in which the kernel reads it."""
    G, H, K = weight.shape
    groups = -(-H // width)
    filled = F.pad(weight, (0, 0, 0, groups * width - H))
    return filled.reshape(G, groups, width // lanes, lanes, K).permute(1, 4, 2, 0, 3).contiguous()


def _lengths(sizes: Sequence[int], batch: int) -> list[int]:
    """Steps of each sequence, longest first, from the number of sequences at each step."""
    lengths, alive = [0] * batch, 0
    for t in range(len(sizes) - 1, -1, -1):
        lengths[alive : sizes[t]] = [t + 1] * (sizes[t] - alive)
        alive = sizes[t]
    return lengths


def _borders(work: Sequence[int], threads: int) -> list[int]:
    """Where each thread's rows begin, so that all have about the same number of steps to do."""
    total, done, borders = sum(work), 0, [0]
    for row, steps in enumerate(work):
        if done >= total * len(borders) / threads:
            borders.append(row)
        done += steps
    return [*borders, len(work)]


def _blocks(walk: Walk, rows: int) -> list[tuple[int, int]]:
    """Stretches [first, last) of steps with at most `rows` rows (but one step at least), against the walk's direction."""
    blocks: list[tuple[int, int]] = []
    start = 0
    for t in range(1, len(walk.spans) + 1):
        if t == len(walk.spans) or walk.spans[t].stop - walk.spans[start].start > rows:
            blocks.append((start, t))
            start = t
    return blocks if walk.reverse else blocks[::-1]


class _Struct(ctypes.Structure):
    """bptt_problem of csrc/problem.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("cell", "is_double", "hidden", "steps", "batch", "reverse", "threads")),
        *((name, ctypes.c_int64) for name in ("first", "last")),
        *(
            (name, ctypes.c_void_p)
            for name in ("offsets", "borders", "cut", "zeros", "h0", "c0", "z", "extra", "h", "c")
        ),
        *(
            (name, ctypes.c_void_p)
            for name in ("weight", "bias_apart", "d_outputs", "dh", "dc", "dz", "dz_hidden", "before")
        ),
    )


class _Native(NamedTuple):
    """The native core, and the address of torch's own thread pool."""

    core: Any
    parallel_for: ctypes.c_void_p


@functools.cache
def library() -> _Native | None:
    """The native core, loaded on first use; None if it was not built, or this torch has no `torch_parallel_for`."""
    if not _CORE.exists():
        return None
    try:
        core = ctypes.CDLL(str(_CORE))
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        parallel_for = ctypes.cast(torch_cpu.torch_parallel_for, ctypes.c_void_p)
    except (OSError, AttributeError):
        return None
    core.bptt_lanes.restype = ctypes.c_int64
    core.bptt_isa.restype = ctypes.c_char_p
    return _Native(core, parallel_for)
