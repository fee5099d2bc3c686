"""Several processes that train one model, each with its own rows of every batch; started by torchrun.

Gradients are summed here, not by DistributedDataParallel: its hooks expect one forward and one backward an update, while
a gradient strategy may run the model several times (`Truncated`), or back through steps of an earlier update.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
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
    """Return how many processes torchrun has started, 1 without it. Raises InputError if its variables make no sense."""
    count = _whole_number_of("WORLD_SIZE", 1)
    missing = [name for name in _TORCHRUN if name not in os.environ] if count > 1 else []
    if missing or not count:
        why = f"{', '.join(missing)} not set" if missing else "one is the least"
        raise InputError(f"the environment variable WORLD_SIZE is {count}, but {why}: unset it, or use torchrun")
    return count


def _whole_number_of(variable: str, otherwise: int) -> int:
    """Return the number in an environment variable of torchrun, or `otherwise` where it is not set.

    Raises InputError if it holds no number.
    """
    text = os.environ.get(variable, str(otherwise))
    if not text.isdecimal():
        raise InputError(f"the environment variable {variable} is {text!r}, wanted a number: unset it, or use torchrun")
    return int(text)


class AlreadyReported(InputError):
    """An InputError that another process of the run prints; this one need not repeat it."""


class ProcessDied(RuntimeError):
    """Another process of the run has ended without telling the others."""


@dataclass(frozen=True)
class Processes:
    """This process among all that train one model, and what it exchanges with the others.

    Attributes:
        rank: its number, from 0.
        world: how many processes there are.
        device: where it computes.
    """

    rank: int
    world: int
    device: torch.device

    @staticmethod
    def join(device: str) -> "Processes":
        """Wait for the other processes, if there are any, and return this one among them.

        Of several processes on one machine with `device` "cuda", each gets the GPU of its own local number.
        """
        world = world_size()
        where = torch.device(device)
        if world == 1:
            return Processes(0, 1, where)
        if where.type == "cuda":
            where = torch.device("cuda", _whole_number_of("LOCAL_RANK", 0))
            torch.cuda.set_device(where)
        # gloo also beside NCCL: checkpoints gather states that are on the CPU by then.
        backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
        # The final report may take one process long; the others do not wait for it.
        dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))
        return Processes(dist.get_rank(), world, where)

    @staticmethod
    def number() -> int:
        """This process's number, which is known before the processes are connected."""
        return _whole_number_of("RANK", 0)

    def leave(self) -> None:
        """Close the connection with the other processes."""
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

    def run_on_all(self, work: Callable[[], T]) -> T:
        """Return work(), which every process calls; if it fails in any of them, all raise an error of the same message.

        That is an InputError in the first process, which prints it, and AlreadyReported in the others; with one process it
        is the error of work() itself.
        """
        if self.world == 1:
            return work()
        value, failure = None, None
        try:
            value = work()
        except (InputError, OSError, MemoryError) as error:
            failure = error
        except Exception:
            self._exchange("another process has failed; see its traceback")
            raise
        messages = [m for m in self._exchange(None if failure is None else str(failure)) if m is not None]
        if messages:
            raise (InputError if self.first else AlreadyReported)(messages[0]) from failure
        return value  # type: ignore[return-value]

    def _exchange(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world
        with _as_process_died():
            dist.all_gather_object(values, value)
        return values

    def gather(self, value: T) -> list[T] | None:
        """Return the values of all processes in the first one, None in the others. Tensors must be on the CPU."""
        if self.world == 1:
            return [value]
        values: list[Any] | None = [None] * self.world if self.first else None
        with _as_process_died():
            dist.gather_object(value, values)
        return values

    def broadcast(self, value: T) -> T:
        """Return the first process's value in all of them."""
        if self.world == 1:
            return value
        values = [value]
        with _as_process_died():
            dist.broadcast_object_list(values)
        return values[0]

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place, and return it."""
        if self.world > 1:
            with _as_process_died():
                dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Sequence[nn.Parameter], figures: Tensor) -> Tensor:
        """Add up all gradients over the processes, and a few other numbers with them in the same exchange.

        Args:
            parameters: of one dtype; a gradient that this process lacks (it had no rows) counts as zero.
            figures: the other numbers, [n], of the same dtype.

        Returns:
            the sums of `figures`, [n]. The gradients' sums are in the parameters' .grad.
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


@contextlib.contextmanager
def _as_process_died() -> Iterator[None]:
    """Turn torch's error about a closed connection into ProcessDied."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessDied("another process of this run has stopped: see its message above, or its log") from error
