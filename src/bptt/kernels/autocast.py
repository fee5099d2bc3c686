"""Number formats under autocast: a layer computes in the format of its weights, and returns results in torch.nn's formats.

torch's operators round the products to autocast's format A, and let the rest follow from the state's format S (the input's,
if no state was given). With A ∨ S the narrowest format that holds both:

| cell                                   | outputs, h | c     |
|----------------------------------------|------------|-------|
| RNN                                    | A          |       |
| GRU                                    | A ∨ S      |       |
| LSTM                                   | A ∨ S      | A ∨ S |
| LSTM with a projection                 | A          | A ∨ S |
| LSTM, padded, not of float16 (oneDNN)  | A          | A     |
| any, on a GPU (cuDNN)                  | A          | A     |

float64 is left as it is, and mixed with nothing.
"""

import functools
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from bptt.cells import GRU, LSTM, State
from bptt.kernels.base import Sequences, Stack
from bptt.torch_private import recurrent_operator

Run = Callable[[Stack, Sequences, State], tuple[Tensor, State]]


def in_the_weights_format(run: Run, stack: Stack, sequences: Sequences, state: State) -> tuple[Tensor, State]:
    """Run in the number format of the weights, and return results in the formats of the table above."""
    x, device = sequences.x, sequences.x.device.type
    inside = next(iter(stack.weights[0][0].values())).dtype
    outside = _formats(stack, sequences, state)
    with torch.autocast(device, enabled=False):
        y, final = run(stack, sequences._replace(x=x.to(inside)), tuple(s.to(inside) for s in state))
    if inside == torch.float64:
        return y, final
    return y.to(outside[0]), tuple(s.to(dtype) for s, dtype in zip(final, outside, strict=True))


def _formats(stack: Stack, sequences: Sequences, state: State) -> tuple[torch.dtype, ...]:
    """The format of each component of the final state; the outputs have that of the first."""
    cell, cast = stack.cell, torch.get_autocast_dtype(sequences.x.device.type)
    wide = torch.promote_types(cast, state[-1].dtype)
    if not sequences.x.is_cpu or is_onednn(stack, sequences):
        return (cast,) * len(state)
    if isinstance(cell, LSTM):
        return (cast if "weight_hr" in stack.weights[0][0] else wide), wide
    return (wide if isinstance(cell, GRU) else cast,) * len(state)


def is_onednn(stack: Stack, sequences: Sequences) -> bool:
    """Whether torch's operator, on the CPU under autocast, would be oneDNN's."""
    padded = sequences.batch_sizes is None and "weight_hr" not in stack.weights[0][0]
    return isinstance(stack.cell, LSTM) and padded and sequences.x.dtype in (torch.float32, torch.bfloat16)


@functools.cache
def onednn_has_lstm(dtype: torch.dtype) -> bool:
    """Whether oneDNN has an LSTM of this number format for this processor, tried once, forward and backward.

    It is tried in a thread of its own, which is in none of the modes (autocast, torch.func) of the calling one.
    """
    found = []
    thread = threading.Thread(target=lambda: found.append(_runs(dtype)))
    thread.start()
    thread.join()
    return found == [True]


def _runs(dtype: torch.dtype) -> bool:
    x, h, c, w_ih, w_hh = torch.zeros(5, 4, 1, device="cpu", dtype=torch.float32).requires_grad_()
    state, weights = [h.view(1, 4, 1), c.view(1, 4, 1)], [w_ih, w_hh, w_ih.flatten(), w_hh.flatten()]
    operator = recurrent_operator("lstm")
    try:
        with torch.autocast("cpu", dtype):
            operator(x.view(1, 4, 1), state, weights, True, 1, 0.0, True, False, False)[0].sum().backward()
    except (RuntimeError, TypeError):  # TypeError: torch has no such operator
        return False
    return True
