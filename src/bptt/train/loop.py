"""The training loop.

stream → Batch → gradient strategy → Σ over processes → finite? → clip → optimizer → metrics, checkpoint
"""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bptt.flow import Flow, watch
from bptt.gradient import Result, backward, parse_strategy
from bptt.options import TrainOptions
from bptt.tasks import Batch, Json, Task
from bptt.train.distributed import Processes
from bptt.train.fitting import check_checkpoint
from bptt.train.interrupt import Interrupt
from bptt.train.loss import counted_loss, masked_losses
from bptt.train.memory import MemoryLog
from bptt.train.model import build_network
from bptt.train.optimizer import Budget, clip, learning_rate, make_optimizer, optimizer_tensors, restore_optimizer
from bptt.train.storage.checkpoint import Checkpoint, Standing, lanes_of_all, lanes_of_one, map_lanes
from bptt.train.storage.tensors import Tensors, snapshot
from bptt.train.watching import Once, can_be_watched

if TYPE_CHECKING:
    from bptt.train.record import Record

CLOCK = time.monotonic  # in seconds: what --minutes is measured with


class Diverged(RuntimeError):
    """The loss or its gradient is no longer a finite number. The message says where, and what to try.

    Attributes:
        flow: how the gradient flowed back there; None if that was not seen.
    """

    def __init__(self, message: str, flow: Flow | None = None) -> None:
        super().__init__(message)
        self.flow = flow


@dataclass(frozen=True)
class Update:
    """What one update did.

    Attributes:
        step: updates made, this one included.
        epoch: passes over the training data.
        loss: mean loss of the batch, over all processes, before the update.
        grad_norm: norm of the gradient before clipping.
        lr: learning rate of the update.
        count: losses that counted.
        spent: share of the budget that was spent when it began.
        stop, checkpoint: True if any process was asked to stop, or the first one's checkpoint is old.
        flow: how this process's gradient flowed back, if the update was watched.
    """

    step: int
    epoch: float
    loss: float
    grad_norm: float
    lr: float
    count: int
    spent: float
    stop: bool
    checkpoint: bool
    flow: Flow | None = None


@dataclass(frozen=True)
class Validation:
    """Mean loss of the held-out part, and as the task's metric. `checkpoint` as in `Update`."""

    step: int
    epoch: float
    loss: float
    score: float
    checkpoint: bool


def train(training: "Training", record: "Record", interrupt: Interrupt) -> bool:
    """Train until the budget is spent or patience is over (returns True), or a signal asks to stop (False).

    Every process runs this, and as all decisions come from summed figures, all take the same turns.
    """
    while True:
        if training.validation_is_due:
            validation = training.validate(interrupt, record.checkpoint_is_due(validated=True))
            if validation is None:
                record.checkpoint(training)
                return False
            record.validation(training, validation)
        if training.finished:
            record.checkpoint(training)
            return True
        update = training.update(interrupt.asked, record.checkpoint_is_due())
        record.update(update)
        if update.checkpoint or update.stop:
            record.checkpoint(training)
        if update.stop:
            return False


class Training:
    """A network in training: all that an update changes. The same in every process but for the rows of the batch.

    Attributes:
        standing: step, clock and validation so far.
        carried: None, or the `Result` from which the next batch goes on.
        memory: says the plan of a strategy with a budget of memory, and what was measured.
        best: the weights of the best validation, kept if patience may end the run.
    """

    def __init__(self, options: TrainOptions, task: Task, processes: Processes) -> None:
        self.options, self.task, self.processes = options, task, processes
        self.device, self.dtype = processes.device, getattr(torch, options.dtype)
        torch.manual_seed(options.seed)
        self.model = build_network(options, task.sizes()).to(self.device, self.dtype)
        self._seed_dropout()
        self.parameters = list(self.model.parameters())
        self.optimizer = make_optimizer(options, self.parameters)
        self.strategy = parse_strategy(options.strategy)
        self.memory = MemoryLog(self.strategy, processes.first)
        self.budget = Budget(options.steps, options.minutes)
        self.stream = task.stream(processes.shard)
        self.standing = Standing()
        self.carried: Result | None = None
        self.best: Tensors = {}
        self._clock_started = CLOCK()
        self._warn_once = Once()

    def _seed_dropout(self, salt: int = 0) -> None:
        """The weights are the same in every process, what is dropped is not."""
        torch.manual_seed((self.options.seed + 1_000_003 * (self.processes.rank + 1) + salt) % 2**63)

    # The update ----------------------------------------------------------------------------------------------------

    def update(self, stop: bool = False, checkpoint: bool = False) -> Update:
        """One step of the optimizer. Raises Diverged, and then nothing was changed.

        Args:
            stop: this process was asked to stop.
            checkpoint: the first process wants a checkpoint.
        """
        batch = next(self.stream).to(self.device, self.dtype)
        self.optimizer.zero_grad()
        flow = self._flow()
        result = self._gradient(batch, flow)
        loss, stopped, elapsed, due = self._agree(result, stop, self.elapsed(), checkpoint)
        norm = clip(self.parameters, self.options.clip).item()
        step, spent = self.standing.step, self.budget.spent(self.standing.step, elapsed)
        if not math.isfinite(loss):
            raise self._diverged(step + 1, f"the loss is {loss}", self._look_again(batch))
        if not math.isfinite(norm):
            raise self._diverged(step + 1, f"the gradient's norm is {norm}", self._look_again(batch))
        lr = learning_rate(self.options, step, spent)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        if self.task.carries_state:
            self.carried = result
        self.standing = replace(self.standing, step=step + 1, elapsed=elapsed)
        return Update(step + 1, self.stream.epoch, loss, norm, lr, batch.count, spent, stopped, due, flow)

    def _flow(self) -> Flow | None:
        """What watches this update: the first one and every --watch-th after it, in the first process."""
        every = self.options.watch if self.processes.first and can_be_watched(self.strategy) else 0
        is_due = every and self.standing.step % every == 0
        return watch(self.model, self._warn_once, self.standing.step) if is_due else None

    def _gradient(self, batch: Batch, flow: Flow | None) -> Result | None:
        """Backpropagation through time; None if this process has no row of the batch."""
        if batch.x.shape[1] == 0:
            return None
        loss = counted_loss(self.model.head, batch.count)
        target = (batch.y, batch.mask)
        state = self.carried.state if self.carried is not None else None
        with flow or nullcontext():
            return self.memory.measured(
                lambda: backward(self.model, batch.x, target, loss, self.strategy, self.carried, reset=batch.reset),
                lambda planned: planned.plan(self.model, batch.x, target, loss, state, reset=batch.reset),
            )

    def _agree(
        self, result: Result | None, stop: bool, elapsed: float, checkpoint: bool
    ) -> tuple[float, bool, float, bool]:
        """Sum the gradients; loss, stop, elapsed, checkpoint become what all processes agree on."""
        loss = torch.zeros((), device=self.device, dtype=self.dtype) if result is None else result.loss
        if self.processes.world == 1:
            return loss.item(), stop, elapsed, checkpoint
        first = self.processes.first  # its clock counts
        asked = torch.tensor([stop, first * elapsed, first and checkpoint], device=self.device, dtype=self.dtype)
        figures = self.processes.sum_gradients(self.parameters, torch.cat([loss.reshape(1), asked])).tolist()
        return figures[0], figures[1] > 0, figures[2], figures[3] > 0

    def _look_again(self, batch: Batch) -> Flow | None:
        """Watch the update that failed, once more: where is its first number that is not finite?"""
        if not (self.processes.first and self.options.watch and can_be_watched(self.strategy)):
            return None
        self.optimizer.zero_grad()
        flow = watch(self.model, self._warn_once, self.standing.step)
        self._gradient(batch, flow)
        return flow

    def _diverged(self, step: int, what: str, flow: Flow | None = None) -> Diverged:
        o = self.options
        clipping = f"--clip {o.clip / 10:g} (it is {o.clip:g})" if o.clip else "--clip 1 (it is off)"
        remedy = f"try a smaller --lr in a new run, e.g. --lr {o.lr / 10:g} (it is {o.lr:g}), or {clipping}"
        return Diverged(f"at step {step:,} {what}: {remedy}", flow)

    # Validation ----------------------------------------------------------------------------------------------------

    @property
    def validation_is_due(self) -> bool:
        """True every so many steps, and at the end."""
        at = self.standing
        wanted = at.step % self.options.validate_every == 0 or self.finished
        return at.step > 0 and at.validated != at.step and wanted

    @property
    def finished(self) -> bool:
        """True when the budget is spent or patience is over."""
        return is_finished(self.options, self.standing)

    def validate(self, interrupt: Interrupt, checkpoint: bool = False) -> Validation | None:
        """The mean loss over the held-out part. None if a signal came meanwhile (a single process only notices then).

        Raises Diverged if it is not a finite number.
        """
        self.model.eval()
        try:
            sums = self._held_out_sums(interrupt)
        finally:
            self.model.train()
        if sums is None:
            return None
        sums = torch.cat([sums, sums.new_tensor([float(self.processes.first and checkpoint)])])
        total, count, due = self.processes.sum(sums).tolist()
        loss = total / count
        if not math.isfinite(loss):
            raise self._diverged(self.standing.step, f"the validation loss is {loss}")
        self._note_validation(loss)
        return Validation(self.standing.step, self.stream.epoch, loss, self.task.score(loss), due > 0)

    @torch.no_grad()
    def _held_out_sums(self, interrupt: Interrupt) -> Tensor | None:
        """[Σ losses, how many] of this process's rows, in float64."""
        sums = torch.zeros(2, device=self.device, dtype=torch.float64)
        state = None
        for batch in self.task.validation(self.processes.shard):
            if interrupt.asked and self.processes.world == 1:
                return None
            if batch.x.shape[1] == 0:
                continue
            batch = batch.to(self.device, self.dtype)
            z, after = self.model(batch.x, state, batch.reset)
            state = after if self.task.carries_state else None
            losses = masked_losses(self.model.head, z, batch.y, batch.mask)
            sums += torch.stack([losses.sum(dtype=torch.float64), batch.mask.sum().double()])
        return sums

    def _note_validation(self, loss: float) -> None:
        at = replace(self.standing, validated=self.standing.step)
        if at.best is None or loss < at.best:
            self.standing = replace(at, best=loss, best_step=at.step, misses=0)
            if self.options.patience > 0:
                self.best = snapshot(self.model.state_dict())
        else:
            self.standing = replace(at, misses=at.misses + 1)

    # Checkpoints ---------------------------------------------------------------------------------------------------

    def elapsed(self) -> float:
        """Seconds of training, earlier sessions included."""
        return CLOCK() - self._clock_started

    def checkpoint(self, metrics: Json) -> Checkpoint | None:
        """Everything to go on from here, in the first process; None in the others, which must call it as well.

        Raises Diverged if a weight is not finite: such a checkpoint would replace a good one.
        """
        if not all(p.isfinite().all() for p in self.parameters):
            raise self._diverged(self.standing.step, "a weight is infinite or not a number")
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        carried = map_lanes(lambda tensors: tensors[0].cpu(), self.carried)
        gathered = self.processes.gather((carried, generators))
        if gathered is None:
            return None
        return Checkpoint(
            standing=replace(self.standing, elapsed=self.elapsed()),
            position=self.stream.position(),
            metrics=metrics,
            weights=snapshot(self.model.state_dict()),
            best=self.best,
            optimizer=snapshot(optimizer_tensors(self.optimizer)),
            carried=lanes_of_all([carried for carried, _ in gathered]),
            generators=[states for _, states in gathered],
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, perhaps one of another number of processes. Raises Unexpected if it is another run's."""
        check_checkpoint(self, checkpoint)
        self.model.load_state_dict(checkpoint.weights)
        restore_optimizer(self.optimizer, checkpoint.optimizer)
        self.stream.seek(checkpoint.position)
        carried = lanes_of_one(checkpoint.carried, self.processes.shard)
        self.carried = map_lanes(lambda tensors: tensors[0].to(self.device), carried)
        self.standing, self.best = checkpoint.standing, checkpoint.best
        self._clock_started = CLOCK() - checkpoint.standing.elapsed
        self._restore_generators(checkpoint)

    def _restore_generators(self, checkpoint: Checkpoint) -> None:
        if self.processes.rank >= len(checkpoint.generators):  # more processes than before
            self._seed_dropout(salt=checkpoint.standing.step + 1)
            return
        states = checkpoint.generators[self.processes.rank]
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and self.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self.device)

    def chosen_weights(self) -> Tensors:
        """The weights to hand out: those of the best validation under --patience, else the last."""
        return self.best or snapshot(self.model.state_dict())


def is_finished(options: TrainOptions, standing: Standing) -> bool:
    """True when the budget is spent or patience is over."""
    over = options.patience > 0 and standing.misses >= options.patience
    return over or Budget(options.steps, options.minutes).spent(standing.step, standing.elapsed) >= 1
