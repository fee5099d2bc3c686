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
from bptt.tasks import Task, make_task
from bptt.terminal import visible
from bptt.train.checks.checkpoint import check_checkpoint
from bptt.train.checks.machine import check_device, check_memory
from bptt.train.checks.options import check_options
from bptt.train.checks.run_folder import check_fingerprint, check_kept_data, kept_data, network_sizes
from bptt.train.display.progress import make_progress
from bptt.train.distributed import AlreadyReported, Processes, world_size
from bptt.train.events import Diverged
from bptt.train.finish import finish
from bptt.train.interrupt import Interrupt
from bptt.train.loop import train
from bptt.train.model import check_count, count_parameters
from bptt.train.record import Record
from bptt.train.storage import run_folder
from bptt.train.storage.checkpoint import Checkpoint, TrainingState, read_checkpoint
from bptt.train.storage.config import Config, write_config
from bptt.train.storage.metrics import Metrics
from bptt.train.storage.weights import write_model
from bptt.train.training import Training, is_finished, stopped_early
from bptt.train.wording import Wording
from bptt.typed import Unexpected


def start(options: TrainOptions) -> int:
    """Train a new run in a folder of its own. Returns the exit code: 0, or 128 + the signal that stopped it.

    Raises:
        InputError: the options or the data cannot be used.
        Diverged: the loss is no longer finite.
        OSError: the folder cannot be written; the last checkpoint is still there.
    """
    with _processes(options) as processes:
        processes.run_on_all(lambda: run_folder.check_out(options.out))
        training = processes.run_on_all(lambda: _prepare(options, make_task(options), processes))
        folder = processes.run_on_all(
            lambda: run_folder.make_folder(options.out, options.task) if processes.first else Path()
        )
        with run_folder.locked(folder) if processes.first else nullcontext():
            if processes.first:
                run_folder.check_out(options.out)  # once more, now that no other process can make a run there
                write_config(folder, _config_of(options, training.task))
                _say(f"{folder}: {_describe(training)}")
            return _run(training, folder, None)


def resume(folder: Path, config: Config, options: TrainOptions) -> int:
    """Go on with a run from its checkpoint. Returns and raises as `start` does.

    Args:
        folder: the run folder.
        config: its config.json.
        options: its options, but perhaps with another budget, device or place of the data.
    """
    with _processes(options) as processes, run_folder.locked(folder) if processes.first else nullcontext():
        checkpoint = processes.run_on_all(lambda: _last_checkpoint(folder, config, options))
        if checkpoint is not None and _is_complete(folder, options, checkpoint):
            if processes.first:
                _say_finished(folder, options, checkpoint.state)
            return 0
        task = processes.run_on_all(lambda: _read_same_data(options, folder, config))
        training = processes.run_on_all(lambda: _prepare(options, task, processes, checkpoint, folder))
        processes.run_on_all(lambda: _restore(training, folder, checkpoint))
        if processes.first:
            run_folder.remove_leftovers(folder)
            write_config(folder, _config_of(options, training.task))
            _say(f"{folder}: going on at step {training.state.step:,}: {_describe(training)}")
        return _run(training, folder, checkpoint)


def _is_complete(folder: Path, options: TrainOptions, checkpoint: Checkpoint) -> bool:
    """Return whether there is nothing left to do: the budget of `options` is spent, and the report is written."""
    return is_finished(options, checkpoint.state) and (folder / run_folder.REPORT).exists()


@contextmanager
def _processes(options: TrainOptions) -> Iterator[Processes]:
    """Connect the processes of the run, once the options are checked; all refuse the same options, and the first says so."""
    try:
        check_options(options, world_size())
        check_device(options.device)
        processes = Processes.join(options.device)
    except InputError as error:
        raise (AlreadyReported(str(error)) if Processes.number() else error) from error
    try:
        yield processes
    finally:
        processes.leave()


def _read_same_data(options: TrainOptions, folder: Path, config: Config) -> Task:
    """Read the data again. Raises InputError if they have changed: else the run folder would seem to be damaged."""
    task = make_task(options)
    remedy = "say where they are now with --data PATH, or train a new run on these"
    check_fingerprint(folder, config, task.fingerprint(), remedy)
    return task


def _prepare(
    options: TrainOptions,
    task: Task,
    processes: Processes,
    checkpoint: Checkpoint | None = None,
    folder: Path = Path(),
) -> Training:
    """Return the network, ready to train. Raises InputError if it does not fit in memory, or its checkpoint is another's.

    Args:
        options: the run's.
        task: its task, with the data read.
        processes: all of its processes.
        checkpoint: that of a run which goes on, else None.
        folder: where the checkpoint lies.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it only costs time
    check_memory(options, count_parameters(options, task.sizes()))
    if checkpoint is not None:
        check_count(folder / run_folder.CHECKPOINT, checkpoint.weights, options, task.sizes())
    return Training(options, task, processes)


def _config_of(options: TrainOptions, task: Task) -> Config:
    return Config(options, asdict(task.sizes()), task.spec(), task.fingerprint(), task.metric, task.unit)


def _last_checkpoint(folder: Path, config: Config, options: TrainOptions) -> Checkpoint | None:
    """Return the run's checkpoint; None if it was killed before its first one, when nothing was trained yet.

    Raises InputError if it cannot be read, if config.json makes no sense, or the data are no longer where that says.
    """
    network_sizes(folder, config)
    before = kept_data(config.options)
    check_kept_data(folder, [kept for kept in kept_data(options) if kept in before])
    lines = folder / run_folder.METRICS
    begun = (folder / run_folder.MODEL).exists() or (lines.exists() and lines.stat().st_size > 0)
    if not (folder / run_folder.CHECKPOINT).exists() and not begun:
        return None
    return read_checkpoint(folder)


def _restore(training: Training, folder: Path, checkpoint: Checkpoint | None) -> None:
    """Go on from the checkpoint, if there is one. Raises InputError if it is another run's."""
    if checkpoint is not None:
        try:
            check_checkpoint(training, checkpoint)
        except Unexpected as error:
            path = folder / run_folder.CHECKPOINT
            raise InputError(f"{path} is not a checkpoint of this run ({error}): restore it from a copy") from error
        training.restore(checkpoint)


def _run(training: Training, folder: Path, checkpoint: Checkpoint | None) -> int:
    """Train to the end, or until a signal comes. Returns the exit code. Errors say which checkpoint is kept."""
    record = _open_record(training, folder, checkpoint)
    try:
        if training.processes.first:
            # They are of the training so far. The checkpoint holds its weights, and the metrics go on from there.
            for name in (run_folder.REPORT, run_folder.PAGE, run_folder.MODEL):
                (folder / name).unlink(missing_ok=True)
        with Interrupt() as interrupt:
            finished = _train(training, record, interrupt, new=checkpoint is None)
            if training.processes.first:
                _conclude(training, folder, record, finished)
            return 0 if finished else 128 + (training.processes.broadcast(interrupt.number) or signal.SIGINT)
    except Diverged as error:
        seen = "" if error.flow is None else record.diverged(training.state.step + 1, error.flow)
        raise Diverged(f"{error}; {record.kept}{seen}") from error
    except BrokenPipeError:  # nobody reads the summary
        raise
    except OSError as error:
        reason = f"cannot write in {folder}: {error.strerror or error}; {record.kept}"
        raise InputError(f"{reason}: make room, then go on with `bptt train --resume {folder}`") from error


def _conclude(training: Training, folder: Path, record: Record, finished: bool) -> None:
    """Write the weights; then finish the run, or say how to go on with it."""
    training.memory.close()
    write_model(folder, training.chosen_weights(), training.state.step)
    if finished:
        training.model.load_state_dict(training.chosen_weights())
        finish(training, folder, record.progress.wording)
    else:
        _say(f"stopped at step {training.state.step:,}; go on with: bptt train --resume {folder}")


def _open_record(training: Training, folder: Path, checkpoint: Checkpoint | None) -> Record:
    """Open the metrics and the display of a run."""
    first = training.processes.first
    progress = make_progress(Wording.of(training.task), training.budget, training.state.elapsed, sys.stderr, first)
    metrics = Metrics(folder, None if checkpoint is None else checkpoint.metrics) if first else None
    return Record(folder if first else None, metrics, progress, None if checkpoint is None else checkpoint.state.step)


def _train(training: Training, record: Record, interrupt: Interrupt, new: bool) -> bool:
    """Run the loop, for a new run after a first checkpoint. Returns True if it came to its end."""
    try:
        if new:
            record.checkpoint(training)
        return train(training, record, interrupt)
    finally:
        record.close()


def _describe(training: Training) -> str:
    """Return the network and the budget in one line."""
    o, count = training.options, sum(p.numel() for p in training.parameters)
    budget = [f"{o.steps:,} updates"] if o.steps else []
    budget += [f"{o.minutes:g} minutes"] if o.minutes else []
    layers = f"{o.layers} layers of {o.hidden}" if o.layers > 1 else f"{o.hidden}"
    live = f"; see its {run_folder.PAGE} meanwhile" if o.watch else ""
    return f"{o.task}, {o.cell} {layers} ({count:,} weights), {o.strategy}, {' or '.join(budget)}{live}"


def _say(line: str) -> None:
    print(visible(line), file=sys.stderr, flush=True)


def _say_finished(folder: Path, options: TrainOptions, state: TrainingState) -> None:
    if stopped_early(options, state):
        why = f"it stopped early, by --patience {options.patience}"
        more = "to use it"
        command = f"bptt predict {folder}"
    else:
        why = f"{state.step:,} updates in {state.elapsed / 60:.1f} minutes"
        more = "for more, give a larger budget"
        command = f"bptt train --resume {folder} --steps {2 * state.step}"
    print(visible(f"{folder} is finished ({why}); {more}: {command}"))
