"""A run from its options to its report: the entrances of `bptt train`."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

from bptt.errors import InputError
from bptt.options import TrainOptions
from bptt.tasks import Json, Task, make_task
from bptt.terminal import visible
from bptt.train import check
from bptt.train.display.progress import Wording, make_progress
from bptt.train.display.summary import finish
from bptt.train.distributed import Processes, SaidElsewhere, world_size
from bptt.train.interrupt import Interrupt
from bptt.train.loop import Diverged, Training, is_finished, train
from bptt.train.model import check_count, count_parameters
from bptt.train.record import Record
from bptt.train.storage import run_folder
from bptt.train.storage.checkpoint import Checkpoint, read_checkpoint
from bptt.train.storage.metrics import Metrics
from bptt.train.storage.run_folder import Config
from bptt.train.storage.tensors import write_model
from bptt.typed import Unexpected


def start(options: TrainOptions) -> int:
    """Train a new run in a folder of its own. Returns the exit code: 0, or 128 + the signal that stopped it.

    Raises:
        InputError: the options or the data cannot be used.
        Diverged: the loss is no longer finite.
        OSError: the folder cannot be written; the last checkpoint is still there.
    """
    with _processes(options) as processes:
        processes.together(lambda: run_folder.check_out(options.out))
        training = processes.together(lambda: _prepare(options, make_task(options), processes))
        folder = processes.together(
            lambda: run_folder.make_folder(options.out, options.task) if processes.first else Path()
        )
        with run_folder.locked(folder) if processes.first else nullcontext():
            if processes.first:
                run_folder.check_out(options.out)  # once more, now that no other process can make a run there
                run_folder.write_config(folder, _config(options, training.task))
                _say(f"{folder}: {_describe(training)}")
            return _run(training, folder, None)


def resume(folder: Path, config: Config, options: TrainOptions) -> int:
    """Go on with a run where its checkpoint stands. As `start`.

    Args:
        folder: the run folder.
        config: what it holds.
        options: the same, but for the budget and the device.
    """
    with _processes(options) as processes, run_folder.locked(folder) if processes.first else nullcontext():
        checkpoint = processes.together(lambda: _checkpoint(folder, config, options))
        if (
            checkpoint is not None
            and is_finished(options, checkpoint.standing)
            and (folder / run_folder.REPORT).exists()
        ):
            _say_finished(folder, options, checkpoint, processes)
            return 0
        task = processes.together(lambda: _same_task(options, folder, config))
        training = processes.together(lambda: _prepare(options, task, processes, checkpoint, folder))
        processes.together(lambda: _restore(training, folder, checkpoint))
        if processes.first:
            run_folder.remove_leftovers(folder)
            run_folder.write_config(folder, _config(options, training.task))
            _say(f"{folder}: going on at step {training.standing.step:,}: {_describe(training)}")
        return _run(training, folder, checkpoint)


@contextmanager
def _processes(options: TrainOptions) -> Iterator[Processes]:
    """The processes of the run, after a look at the options; all of them fail on the same ones, the first says so."""
    try:
        check.check_options(options, world_size())
        check.check_device(options.device)
        processes = Processes.join(options.device)
    except InputError as error:
        raise (SaidElsewhere(str(error)) if Processes.number() else error) from error
    try:
        yield processes
    finally:
        processes.leave()


def _same_task(options: TrainOptions, folder: Path, config: Config) -> Task:
    """Read the data. Raises InputError if they are not those of the run in `folder`, before they are blamed on its files."""
    task = make_task(options)
    remedy = "say where they are now with --data PATH, or train a new run on these"
    check.check_fingerprint(folder, config, task.fingerprint(), remedy)
    return task


def _prepare(
    options: TrainOptions,
    task: Task,
    processes: Processes,
    checkpoint: Checkpoint | None = None,
    folder: Path = Path(),
) -> Training:
    """Build the network, of which the checkpoint of `folder`, if there is one, must be."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it only costs time
    check.check_memory(options, count_parameters(options, task.sizes()))
    if checkpoint is not None:
        check_count(folder / run_folder.CHECKPOINT, checkpoint.weights, options, task.sizes())
    return Training(options, task, processes)


def _config(options: TrainOptions, task: Task) -> Config:
    return Config(options, asdict(task.sizes()), task.spec(), task.fingerprint(), task.metric, task.unit)


def _checkpoint(folder: Path, config: Config, options: TrainOptions) -> Checkpoint | None:
    """The run's checkpoint; None if it was killed before its first one, and so has lost nothing. Raises InputError, also
    for a config.json that makes no sense, and where the data are no longer where it says.
    """
    check.network_sizes(folder, config)
    before = check.kept_data(config.options)
    check.check_kept_data(folder, [kept for kept in check.kept_data(options) if kept in before])
    lines = folder / run_folder.METRICS
    begun = (folder / run_folder.MODEL).exists() or (lines.exists() and lines.stat().st_size > 0)
    if not (folder / run_folder.CHECKPOINT).exists() and not begun:
        return None
    return read_checkpoint(folder)


def _restore(training: Training, folder: Path, checkpoint: Checkpoint | None) -> None:
    """Put the checkpoint into the training. Raises InputError if it is of another."""
    if checkpoint is not None:
        try:
            training.restore(checkpoint)
        except Unexpected as error:
            path = folder / run_folder.CHECKPOINT
            raise InputError(f"{path} is not a checkpoint of this run ({error}): restore it from a copy") from error


def _run(training: Training, folder: Path, checkpoint: Checkpoint | None) -> int:
    """Train to the end, or to a signal. Returns the exit code. Failures are told with what is kept."""
    record = _record(training, folder, checkpoint)
    try:
        if training.processes.first:
            # What was made of before; the checkpoint holds the weights by now, and the metrics go on from it.
            for name in (run_folder.REPORT, run_folder.PAGE, run_folder.MODEL):
                (folder / name).unlink(missing_ok=True)
        with Interrupt() as interrupt:
            finished = _train(training, record, interrupt, new=checkpoint is None)
            if training.processes.first:
                _hand_out(training, folder, record, finished)
            return 0 if finished else 128 + (training.processes.tell(interrupt.number) or signal.SIGINT)
    except Diverged as error:
        seen = "" if error.flow is None else record.diverged(training.standing.step + 1, error.flow)
        raise Diverged(f"{error}; {record.kept}{seen}") from error
    except BrokenPipeError:  # nobody reads the summary
        raise
    except OSError as error:
        reason = f"cannot write in {folder}: {error.strerror or error}; {record.kept}"
        raise InputError(f"{reason}: make room, then go on with `bptt train --resume {folder}`") from error


def _hand_out(training: Training, folder: Path, record: Record, finished: bool) -> None:
    """Write the weights, and at the end of the training the report."""
    training.memory.close()
    write_model(folder, training.chosen_weights(), training.standing.step)
    if finished:
        training.model.load_state_dict(training.chosen_weights())
        finish(training, folder, record.progress.wording)
    else:
        _say(f"stopped at step {training.standing.step:,}; go on with: bptt train --resume {folder}")


def _record(training: Training, folder: Path, checkpoint: Checkpoint | None) -> Record:
    """The open files and the display."""
    task, first = training.task, training.processes.first
    wording = Wording(task.name, task.metric, task.unit, task.score)
    progress = make_progress(wording, training.budget, training.standing.elapsed, sys.stderr, first)
    metrics = Metrics(folder, None if checkpoint is None else checkpoint.metrics) if first else None
    return Record(
        folder if first else None, metrics, progress, None if checkpoint is None else checkpoint.standing.step
    )


def _train(training: Training, record: Record, interrupt: Interrupt, new: bool) -> bool:
    """The loop, with a checkpoint before the first update; True if it came to its end."""
    try:
        if new:
            record.checkpoint(training)
        return train(training, record, interrupt)
    finally:
        record.close()


def _describe(training: Training) -> str:
    """The network and the budget in a line."""
    o, count = training.options, sum(p.numel() for p in training.parameters)
    budget = [f"{o.steps:,} updates"] if o.steps else []
    budget += [f"{o.minutes:g} minutes"] if o.minutes else []
    layers = f"{o.layers} layers of {o.hidden}" if o.layers > 1 else f"{o.hidden}"
    live = f"; see its {run_folder.PAGE} meanwhile" if o.watch else ""
    return f"{o.task}, {o.cell} {layers} ({count:,} weights), {o.strategy}, {' or '.join(budget)}{live}"


def _say(line: str) -> None:
    print(visible(line), file=sys.stderr, flush=True)


def _say_finished(folder: Path, options: TrainOptions, checkpoint: Checkpoint, processes: Processes) -> None:
    if processes.first:
        at = checkpoint.standing
        if options.patience > 0 and at.misses >= options.patience:
            why = f"it stopped early, by --patience {options.patience}"
            more = "to use it"
            command = f"bptt predict {folder}"
        else:
            why = f"{at.step:,} updates in {at.elapsed / 60:.1f} minutes"
            more = "for more, give a larger budget"
            command = f"bptt train --resume {folder} --steps {2 * at.step}"
        print(visible(f"{folder} is finished ({why}); {more}: {command}"))


__all__ = ["Json", "resume", "start"]
