"""A network in training, and what one update, one validation and one checkpoint of it are.

stream → Batch → gradient strategy → Σ over processes → finite? → clip → optimizer → metrics, checkpoint
"""

import math
import time
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from bptt.flow import Flow, watch
from bptt.gradient import Result, backward, parse_strategy
from bptt.options import TrainOptions
from bptt.tasks import Batch, Task
from bptt.train.distributed import Processes
from bptt.train.events import Diverged, Update, Validation
from bptt.train.interrupt import Interrupt
from bptt.train.loss import counted_loss, masked_losses
from bptt.train.memory_log import MemoryLog
from bptt.train.model import build_network
from bptt.train.optimizer import clip, make_optimizer, optimizer_tensors, restore_optimizer
from bptt.train.schedule import Budget, learning_rate
from bptt.train.storage.carried import lanes_of_all, lanes_of_one, map_tensors
from bptt.train.storage.checkpoint import Checkpoint, TrainingState
from bptt.train.storage.tensors import Tensors, snapshot
from bptt.train.watching import WarnOnce, can_be_watched
from bptt.typed import Json

CLOCK = time.monotonic  # in seconds: what --minutes is measured with


class Training:
    """A network in training: all that an update changes. Every process has an equal one, but its own rows of each batch.

    Attributes:
        state: step, clock and validation so far.
        carried: None, or the `Result` from which the next batch goes on.
        memory: prints the plan of a strategy with a budget of memory, and what was measured.
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
        self.state = TrainingState()
        self.carried: Result | None = None
        self.best: Tensors = {}
        self._clock_started = CLOCK()
        self._warn_once = WarnOnce()

    def _seed_dropout(self, salt: int = 0) -> None:
        """Seed what comes after the weights: these are equal in every process, but each drops other units."""
        torch.manual_seed((self.options.seed + 1_000_003 * (self.processes.rank + 1) + salt) % 2**63)

    # The update ----------------------------------------------------------------------------------------------------

    def update(self, stop: bool = False, checkpoint: bool = False) -> Update:
        """Make one step of the optimizer. Raises Diverged, and then the weights are as before.

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
        step, spent = self.state.step, self.budget.spent(self.state.step, elapsed)
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
        self.state = replace(self.state, step=step + 1, elapsed=elapsed)
        return Update(step + 1, self.stream.epoch, loss, norm, lr, batch.count, spent, stopped, due, flow)

    def _flow(self) -> Flow | None:
        """Return what watches this update; None unless this is the first process and a --watch-th update, or the first."""
        every = self.options.watch if self.processes.first and can_be_watched(self.strategy) else 0
        is_due = every and self.state.step % every == 0
        return watch(self.model, self._warn_once, self.state.step) if is_due else None

    def _gradient(self, batch: Batch, flow: Flow | None) -> Result | None:
        """Backpropagate through time; returns None if this process has no row of the batch."""
        if batch.x.shape[1] == 0:
            return None
        loss = counted_loss(self.model.head, batch.count)
        target = (batch.y, batch.mask)
        hidden = self.carried.state if self.carried is not None else None
        with flow or nullcontext():
            return self.memory.measured(
                lambda: backward(self.model, batch.x, target, loss, self.strategy, self.carried, reset=batch.reset),
                lambda planned: planned.plan(self.model, batch.x, target, loss, hidden, reset=batch.reset),
            )

    def _agree(
        self, result: Result | None, stop: bool, elapsed: float, checkpoint: bool
    ) -> tuple[float, bool, float, bool]:
        """Sum the gradients over all processes; returns the loss, stop, elapsed and checkpoint that all agree on."""
        loss = torch.zeros((), device=self.device, dtype=self.dtype) if result is None else result.loss
        if self.processes.world == 1:
            return loss.item(), stop, elapsed, checkpoint
        first = self.processes.first  # its clock counts
        asked = torch.tensor([stop, first * elapsed, first and checkpoint], device=self.device, dtype=self.dtype)
        figures = self.processes.sum_gradients(self.parameters, torch.cat([loss.reshape(1), asked])).tolist()
        return figures[0], figures[1] > 0, figures[2], figures[3] > 0

    def _look_again(self, batch: Batch) -> Flow | None:
        """Repeat the update that failed under `watch`, which finds its first number that is not finite."""
        if not (self.processes.first and self.options.watch and can_be_watched(self.strategy)):
            return None
        self.optimizer.zero_grad()
        flow = watch(self.model, self._warn_once, self.state.step)
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
        """True every --validate-every updates and at the end, if this step is not validated yet."""
        now = self.state
        wanted = now.step % self.options.validate_every == 0 or self.finished
        return now.step > 0 and now.validated != now.step and wanted

    @property
    def finished(self) -> bool:
        """True when the budget is spent or patience is over."""
        return is_finished(self.options, self.state)

    def validate(self, interrupt: Interrupt, checkpoint: bool = False) -> Validation | None:
        """Return the mean loss over the held-out part; None if a signal came meanwhile (a single process only).

        Raises Diverged if the loss is not finite.
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
            raise self._diverged(self.state.step, f"the validation loss is {loss}")
        self._note_validation(loss)
        return Validation(self.state.step, self.stream.epoch, loss, self.task.score(loss), due > 0)

    @torch.no_grad()
    def _held_out_sums(self, interrupt: Interrupt) -> Tensor | None:
        """Return [Σ losses, how many] of this process's rows, in float64; None if a signal came meanwhile."""
        sums = torch.zeros(2, device=self.device, dtype=torch.float64)
        hidden = None
        for batch in self.task.validation(self.processes.shard):
            if interrupt.asked and self.processes.world == 1:
                return None
            if batch.x.shape[1] == 0:
                continue
            batch = batch.to(self.device, self.dtype)
            z, after = self.model(batch.x, hidden, batch.reset)
            hidden = after if self.task.carries_state else None
            losses = masked_losses(self.model.head, z, batch.y, batch.mask)
            sums += torch.stack([losses.sum(dtype=torch.float64), batch.mask.sum().double()])
        return sums

    def _note_validation(self, loss: float) -> None:
        now = replace(self.state, validated=self.state.step)
        if now.best is None or loss < now.best:
            self.state = replace(now, best=loss, best_step=now.step, misses=0)
            if self.options.patience > 0:
                self.best = snapshot(self.model.state_dict())
        else:
            self.state = replace(now, misses=now.misses + 1)

    # Checkpoints ---------------------------------------------------------------------------------------------------

    def elapsed(self) -> float:
        """Seconds of training, those of earlier sessions included."""
        return CLOCK() - self._clock_started

    def checkpoint(self, metrics: Json) -> Checkpoint | None:
        """Return everything that is needed to go on from here; None in all processes but the first, which call it as well.

        Raises Diverged if a weight is not finite: such a checkpoint would replace a good one.

        Args:
            metrics: how far metrics.jsonl goes, see `Checkpoint`.
        """
        if not all(p.isfinite().all() for p in self.parameters):
            raise self._diverged(self.state.step, "a weight is infinite or not a number")
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        carried = map_tensors(lambda tensors: tensors[0].cpu(), self.carried)
        gathered = self.processes.gather((carried, generators))
        if gathered is None:
            return None
        return Checkpoint(
            state=replace(self.state, elapsed=self.elapsed()),
            position=self.stream.position(),
            metrics=metrics,
            weights=snapshot(self.model.state_dict()),
            best=self.best,
            optimizer=snapshot(optimizer_tensors(self.optimizer)),
            carried=lanes_of_all([carried for carried, _ in gathered]),
            generators=[states for _, states in gathered],
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this run, perhaps of another number of processes.

        `bptt.train.checks.checkpoint` says before whether it is one: here torch would fail, or not notice.
        """
        self.model.load_state_dict(checkpoint.weights)
        restore_optimizer(self.optimizer, checkpoint.optimizer)
        self.stream.seek(checkpoint.position)
        carried = lanes_of_one(checkpoint.carried, self.processes.shard)
        self.carried = map_tensors(lambda tensors: tensors[0].to(self.device), carried)
        self.state, self.best = checkpoint.state, checkpoint.best
        self._clock_started = CLOCK() - checkpoint.state.elapsed
        self._restore_generators(checkpoint)

    def _restore_generators(self, checkpoint: Checkpoint) -> None:
        if self.processes.rank >= len(checkpoint.generators):  # more processes than before
            self._seed_dropout(salt=checkpoint.state.step + 1)
            return
        states = checkpoint.generators[self.processes.rank]
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and self.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self.device)

    def chosen_weights(self) -> Tensors:
        """The weights to predict with: those of the best validation under --patience, else the last."""
        return self.best or snapshot(self.model.state_dict())


def is_finished(options: TrainOptions, state: TrainingState) -> bool:
    """True when the budget is spent or patience is over."""
    spent = Budget(options.steps, options.minutes).spent(state.step, state.elapsed)
    return stopped_early(options, state) or spent >= 1


def stopped_early(options: TrainOptions, state: TrainingState) -> bool:
    """True when as many validations in a row as --patience allows were no better than the best."""
    return 0 < options.patience <= state.misses
