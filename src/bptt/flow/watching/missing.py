"""Where a tensor went on from a layer, but its gradient did not come back."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from bptt.flow.watching.call import WatchedCall

Path = Sequence[WatchedCall]  # calls that hand their state on


class MissingGradient(NamedTuple):
    """A gradient that did not come back.

    Attributes:
        module: the name of the module at whose results it is missing.
        kind: "state" (detached, within one loss), "truncation" (detached, between two backward passes), "outputs" (the next
            layer reads them detached), "none" (nothing arrived, for no reason that can be seen), "frozen" (none is wanted).
        reader: of "outputs": the name of the module that reads them.
    """

    module: str
    kind: str
    reader: str = ""


def missing_gradients(paths: Sequence[Path], names: Mapping[int, str]) -> Iterator[MissingGradient]:
    """Yield the places in the watched calls where a gradient did not come back. `names`: of the modules, by id."""
    passes = {id(call): _passes(path) for path in paths for call in path}
    for path in paths:
        name = names[id(path[0].module)]
        for call in filter(_is_cut_off, path):
            spans = any(passes[id(earlier)] & passes[id(call)] for earlier in call.follows)
            yield MissingGradient(name, "state" if spans else "truncation")
        if path[0].differentiable and not _passes(path):
            reader = _reader(path, paths)
            yield MissingGradient(name, "none") if reader is None else MissingGradient(name, "outputs", names[reader])
        if _is_frozen(path):
            yield MissingGradient(name, "frozen")


def _is_cut_off(call: WatchedCall) -> bool:
    """Whether the call began with a detached state, and its results have a graph."""
    return call.began_detached and call.differentiable


def _passes(path: Path) -> set[int]:
    """The numbers of the backward passes that reached the path."""
    return {number for call in path for number in call.passes}


def _reader(path: Path, paths: Sequence[Path]) -> int | None:
    """The id of the first module that reads an output of the path's calls detached."""
    others = [call for other in paths if other is not path for call in other]
    return next((id(c.module) for c in others if any(_reads_detached(c, call) for call in path)), None)


def _reads_detached(later: WatchedCall, earlier: WatchedCall) -> bool:
    """Whether one call's input is another's output (the same memory), detached."""
    x, y = later.input_data, earlier.output_data
    return not later.input_attached and x.data_ptr() == y.data_ptr() and x.shape == y.shape


def _is_frozen(path: Path) -> bool:
    wanted = any(call.differentiable for call in path)
    return not wanted and not any(p.requires_grad for p in path[0].module.parameters())
