"""checkpoint.safetensors: everything from which a run goes on as if it had never been stopped, in one sealed file.

States are kept for all lanes, over all processes, so that a run may go on with another number of processes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from bptt.errors import InputError
from bptt.gradient import Result
from bptt.train.storage.carried import flatten, unflatten
from bptt.train.storage.run_folder import CHECKPOINT
from bptt.train.storage.tensors import Tensors, read_tensors, write_tensors
from bptt.typed import Count, Json, Unexpected, Within, convert


@dataclass(frozen=True)
class TrainingState:
    """How far a run has come, in plain numbers.

    Attributes:
        step: updates made.
        elapsed: seconds of training, over all sessions.
        best: the best validation loss so far (nats or squared error, not yet the metric); None before the first.
        best_step: the step it was found at.
        misses: validations since then.
        validated: the step of the last validation.
    """

    step: Count = 0
    elapsed: Annotated[float, Within(0, 1e12)] = 0.0
    best: float | None = None
    best_step: Count = 0
    misses: Count = 0
    validated: Count = 0


@dataclass(frozen=True)
class Checkpoint:
    """All that an update changes, and where the data and the random generators stand.

    Attributes:
        state: step, clock and validation.
        position: of the stream, for all lanes.
        metrics: how much of metrics.jsonl belongs to it: {"bytes": …, "sha256": …}.
        weights: the model's.
        best: the weights of the best validation, kept if the run stops early; else empty.
        optimizer: its state, tensors by name "number/key".
        carried: hidden state and past of the stream, a `Result`; None for a task that begins each batch at zero.
        generators: states of the random generators, {"cpu": …} and perhaps {"cuda": …}, of every process.
    """

    state: TrainingState
    position: Json
    metrics: Json
    weights: Tensors
    best: Tensors
    optimizer: Tensors
    carried: Result | None
    generators: Sequence[Tensors]

    @property
    def chosen(self) -> Tensors:
        """The weights to predict with: those of the best validation if they are kept, else the last."""
        return self.best or self.weights


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint of the folder. Raises OSError, and then the old one is still there."""
    tensors: Tensors = {}
    for part, content in (
        ("weights", checkpoint.weights),
        ("best", checkpoint.best),
        ("optimizer", checkpoint.optimizer),
    ):
        tensors |= {f"{part}/{name}": t for name, t in content.items()}
    for rank, states in enumerate(checkpoint.generators):
        tensors |= {f"generators/{rank}/{name}": t for name, t in states.items()}
    about = {
        "standing": asdict(checkpoint.state),
        "position": checkpoint.position,
        "metrics": checkpoint.metrics,
        "carried": flatten(checkpoint.carried, tensors),
    }
    write_tensors(folder / CHECKPOINT, tensors, about)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Return the checkpoint of the folder. Raises InputError if it is missing, damaged, too new or makes no sense."""
    path = folder / CHECKPOINT
    tensors, about = read_tensors(path, "restore it from a copy, or train again; a model.safetensors can still be used")

    def part(name: str) -> Tensors:
        return {key.removeprefix(name): t for key, t in tensors.items() if key.startswith(name)}

    generators: list[Tensors] = []
    while states := part(f"generators/{len(generators)}/"):
        generators.append(states)
    try:
        header = convert({key: about[key] for key in _HEADER if key in about}, _Header, "it")
        state = header.standing
        if not generators or max(state.best_step, state.validated) > state.step:
            raise Unexpected("its steps are in no order, or it has no state of the random generators")
        return Checkpoint(
            state=state,
            position=header.position,
            metrics=header.metrics,
            weights=part("weights/"),
            best=part("best/"),
            optimizer=part("optimizer/"),
            carried=unflatten(header.carried, tensors),
            generators=generators,
        )
    except Unexpected as error:
        raise InputError(f"{path} is not a checkpoint of this bptt ({error}); train again") from error


@dataclass(frozen=True)
class _Header:
    """The JSON of a checkpoint, beside the tensors. Its names are those of files that users keep: they stay."""

    standing: TrainingState
    position: dict[str, Count]
    metrics: dict[str, str | Count]
    carried: Any


_HEADER = ("standing", "position", "metrics", "carried")
