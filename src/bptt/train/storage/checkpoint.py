"""The checkpoint: everything from which a run goes on as if it had never been stopped, in one atomic, sealed file.

States are kept for all lanes, over all processes, so that a run may go on with another number of processes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from bptt.errors import InputError
from bptt.gradient import Past, Result
from bptt.tasks import Shard
from bptt.train.storage.run_folder import CHECKPOINT, Json
from bptt.train.storage.tensors import Tensors, read_tensors, write_tensors
from bptt.typed import Count, Unexpected, Within, convert

_LANES = 1  # the axis of the batch: states [layers, B, H], inputs [T, B, ...], resets [T, B]


@dataclass(frozen=True)
class Standing:
    """Where a run stands, in plain numbers.

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
    """What a run is made of.

    Attributes:
        standing: step, clock and validation.
        position: of the stream, for all lanes.
        metrics: how much of metrics.jsonl belongs to it: {"bytes": …, "sha256": …}.
        weights: the model's.
        best: the weights of the best validation, kept if the run stops early; else empty.
        optimizer: its state, tensors by name "number/key".
        carried: hidden state and past of the stream, a `Result`; None for a task that begins each batch at zero.
        generators: states of the random generators, {"cpu": …} and perhaps {"cuda": …}, of every process.
    """

    standing: Standing
    position: Json
    metrics: Json
    weights: Tensors
    best: Tensors
    optimizer: Tensors
    carried: Result | None
    generators: Sequence[Tensors]

    @property
    def chosen(self) -> Tensors:
        """The weights that the run would hand out now."""
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
        "standing": asdict(checkpoint.standing),
        "position": checkpoint.position,
        "metrics": checkpoint.metrics,
        "carried": _flatten(checkpoint.carried, "carried", tensors),
    }
    write_tensors(folder / CHECKPOINT, tensors, about)


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint of the folder. Raises InputError."""
    path = folder / CHECKPOINT
    tensors, about = read_tensors(path, "restore it from a copy, or train again; a model.safetensors can still be used")

    def part(name: str) -> Tensors:
        return {key.removeprefix(name): t for key, t in tensors.items() if key.startswith(name)}

    generators: list[Tensors] = []
    while states := part(f"generators/{len(generators)}/"):
        generators.append(states)
    try:
        said = convert({key: about[key] for key in _PARTS if key in about}, _Said, "it")
        standing = said.standing
        if not generators or max(standing.best_step, standing.validated) > standing.step:
            raise Unexpected("its steps are in no order, or it has no state of the random generators")
        return Checkpoint(
            standing=standing,
            position=said.position,
            metrics=said.metrics,
            weights=part("weights/"),
            best=part("best/"),
            optimizer=part("optimizer/"),
            carried=_unflatten(said.carried, tensors, _DEEPEST),
            generators=generators,
        )
    except Unexpected as error:
        raise InputError(f"{path} is not a checkpoint of this bptt ({error}); train again") from error


@dataclass(frozen=True)
class _Said:
    """What stands in a checkpoint beside the tensors."""

    standing: Standing
    position: dict[str, Count]
    metrics: dict[str, str | Count]
    carried: Any


_PARTS = ("standing", "position", "metrics", "carried")


# Trees of tensors as JSON and a flat dictionary --------------------------------------------------------------------


def _flatten(tree: Any, name: str, tensors: Tensors) -> Any:
    """Put the tensors of a tree into `tensors`; returns the tree's shape as JSON, with their names as leaves."""
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        tensors[name] = tree
        return name
    if isinstance(tree, Result):
        return {
            "result": [_flatten(tree.state, f"{name}/state", tensors), _flatten(tree.past, f"{name}/past", tensors)]
        }
    if isinstance(tree, Past):
        parts = {"x": tree.x, "state": tree.state, "reset": tree.reset}
        return {"past": [_flatten(t, f"{name}/{key}", tensors) for key, t in parts.items()]}
    if isinstance(tree, tuple | list):
        return {"tuple": [_flatten(t, f"{name}/{i}", tensors) for i, t in enumerate(tree)]}
    raise TypeError(
        f"a checkpoint cannot hold a {type(tree).__name__} in the state: it holds tensors and tuples of them"
    )


_DEEPEST = 8  # levels of a tree: a Result holds a Past, which holds the layers' states


def _unflatten(shape: Any, tensors: Tensors, deepest: int) -> Any:
    """The inverse of `_flatten`. Raises Unexpected."""
    if shape is None:
        return None
    if isinstance(shape, str) and shape in tensors:
        return tensors[shape]
    kind, children = next(iter(shape.items())) if isinstance(shape, dict) and len(shape) == 1 else ("", None)
    if not (isinstance(children, list) and deepest and _COUNTS.get(kind, len(children)) == len(children)):
        raise Unexpected("its hidden state is none that it could have written")
    parts = [_unflatten(child, tensors, deepest - 1) for child in children]
    if kind == "result" and deepest == _DEEPEST:
        return Result(torch.zeros((), device="cpu"), *parts)
    if kind == "past":
        return Past(*parts)
    if kind == "tuple":
        return tuple(parts)
    raise Unexpected(f"its hidden state has an unknown part {kind[:60]!r}")


_COUNTS = {"result": 2, "past": 3}


def map_lanes(join: Any, first: Any, *others: Any) -> Any:
    """`join(tensors)` at every tensor of trees of the same shape."""
    if first is None:
        return None
    if isinstance(first, Tensor):
        return join([first, *others])
    if isinstance(first, Result):
        parts = (
            map_lanes(join, *column) for column in zip(*((r.state, r.past) for r in (first, *others)), strict=True)
        )
        return Result(torch.zeros((), device="cpu"), *parts)
    if isinstance(first, Past):
        columns = zip(*((p.x, p.state, p.reset) for p in (first, *others)), strict=True)
        return Past(*(map_lanes(join, *column) for column in columns))
    return tuple(map_lanes(join, *column) for column in zip(first, *others, strict=True))


def lanes_of_all(carried: Sequence[Result | None]) -> Any:
    """One state from those of all processes, which hold neighbouring lanes."""
    return map_lanes(lambda tensors: torch.cat(tensors, dim=_LANES).contiguous(), *carried)


def lanes_of_one(carried: Result | None, shard: Shard) -> Any:
    """This process's lanes of a state of all of them."""
    return map_lanes(lambda tensors: tensors[0][:, shard.rows(tensors[0].shape[_LANES])].contiguous(), carried)
