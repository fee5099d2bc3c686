"""Several processes that train one model, each with its own rows of every batch; started by torchrun.

Gradients are summed here, not by DistributedDataParallel: its hooks expect one forward and one backward an update, while
a gradient strategy may run the model several times (`Truncated`), or back through steps of an earlier update.
"""

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# Before there is a group: its functions take the group of that moment as their default, and would keep it, and its threads,
# alive to the end of the process, where a thread that then lets go of a tensor aborts it (exit code 134).
import torch.distributed.nn
from torch import Tensor, nn

from bptt.errors import InputError
from bptt.tasks import Shard

T = TypeVar("T")
_TORCHRUN = ("RANK", "MASTER_ADDR", "MASTER_PORT")  # what it sets beside WORLD_SIZE


def world_size() -> int:
    """How many processes torchrun has started, 1 without it. Raises InputError if that cannot be."""
    count = _number("WORLD_SIZE", 1)
    missing = [name for name in _TORCHRUN if name not in os.environ] if count > 1 else []
    if missing or not count:
        why = f"{', '.join(missing)} not set" if missing else "one is the least"
        raise InputError(f"the environment variable WORLD_SIZE is {count}, but {why}: unset it, or use torchrun")
    return count


def _number(variable: str, otherwise: int) -> int:
    """A number that torchrun has set. Raises InputError if somebody has set something else."""
    text = os.environ.get(variable, str(otherwise))
    if not text.isdecimal():
        raise InputError(f"the environment variable {variable} is {text!r}, wanted a number: unset it, or use torchrun")
    return int(text)


class SaidElsewhere(InputError):
    """An InputError that another process prints."""


class LostProcess(RuntimeError):
    """Another process of the run has ended without a word."""


@dataclass(frozen=True)
class Processes:
    """This process among all."""

    rank: int
    world: int
    device: torch.device

    @staticmethod
    def join(device: str) -> "Processes":
        """Meet the other processes, if there are any. `device` cuda is the GPU of this process's number on its machine."""
        world = world_size()
        where = torch.device(device)
        if world == 1:
            return Processes(0, 1, where)
        if where.type == "cuda":
            where = torch.device("cuda", _number("LOCAL_RANK", 0))
            torch.cuda.set_device(where)
        # gloo also beside NCCL: checkpoints gather states that are on the CPU by then.
        backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
        # The final report may take one process long; the others do not wait for it.
        dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))
        return Processes(dist.get_rank(), world, where)

    @staticmethod
    def number() -> int:
        """This process's number, known before it has met the others."""
        return _number("RANK", 0)

    def leave(self) -> None:
        """Part from the others."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """True for the one process that writes and prints."""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        """The rows of this process."""
        return Shard(self.rank, self.world)

    def together(self, make: Callable[[], T]) -> T:
        """`make()` in every process; if it fails in any, all raise the first one's error, which one of them prints."""
        if self.world == 1:
            return make()
        value, failure = None, None
        try:
            value = make()
        except (InputError, OSError, MemoryError) as error:
            failure = error
        except Exception:
            self._exchange("another process has failed; see its traceback")
            raise
        messages = [m for m in self._exchange(None if failure is None else str(failure)) if m is not None]
        if messages:
            raise (InputError if self.first else SaidElsewhere)(messages[0]) from failure
        return value  # type: ignore[return-value]

    def _exchange(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world
        with _noticing_loss():
            dist.all_gather_object(values, value)
        return values

    def gather(self, value: T) -> list[T] | None:
        """The values of all processes, in the first one; None in the others. Tensors must be on the CPU."""
        if self.world == 1:
            return [value]
        values: list[Any] | None = [None] * self.world if self.first else None
        with _noticing_loss():
            dist.gather_object(value, values)
        return values

    def tell(self, value: T) -> T:
        """The first process's value, in all."""
        if self.world == 1:
            return value
        values = [value]
        with _noticing_loss():
            dist.broadcast_object_list(values)
        return values[0]

    def sum(self, values: Tensor) -> Tensor:
        """Σ over the processes, in place."""
        if self.world > 1:
            with _noticing_loss():
                dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Sequence[nn.Parameter], figures: Tensor) -> Tensor:
        """Sum all gradients, and a few figures on the way, in one exchange.

        Args:
            parameters: of one dtype; a gradient that this process lacks (it had no rows) counts as zero.
            figures: [n], of the same dtype.

        Returns:
            the summed figures [n].
        """
        if self.world == 1:
            return figures
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        bucket = self.sum(torch.cat([figures, *(g.reshape(-1) for g in gradients)]))
        at = len(figures)
        for p in parameters:
            p.grad = bucket[at : at + p.numel()].view_as(p)
            at += p.numel()
        return bucket[: len(figures)]


class _noticing_loss:  # noqa: N801  # reads as a phrase
    """Turns torch's error about a closed connection into `LostProcess`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RuntimeError):
            raise LostProcess("another process of this run has stopped: see its message above, or its log") from error
