"""What a kernel is asked to do: run a stack of recurrent layers over time."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

from bptt.cells import Cell, State, Weights


class Stack(NamedTuple):
    """Recurrent layers on top of each other, each in one or two directions.

    Attributes:
        cell: the time step of every layer.
        weights: weights[layer][direction]; direction 1 walks from the last step to the first.
        dropout: share of the outputs of every layer but the last that is dropped; 0 outside training.
    """

    cell: Cell
    weights: tuple[tuple[Weights, ...], ...]
    dropout: float = 0.0


class Sequences(NamedTuple):
    """The input of a stack, time first.

    Attributes:
        x: [T, B, D]; or, with batch_sizes, the rows [N, D] of a PackedSequence.
        batch_sizes: the number of rows of each step, longest sequence first, int64 [T] on the CPU; None where all have B.
        reset: bool [T, B] (or [N]): rows whose state is set to zero before that step; None where none is.
    """

    x: Tensor
    batch_sizes: Tensor | None = None
    reset: Tensor | None = None


class Kernel(ABC):
    """One way to run the loop over time. All kernels compute equal outputs and derivatives, or refuse."""

    name: ClassVar[str]

    @abstractmethod
    def refusal(self, stack: Stack, sequences: Sequences, state: State = ()) -> str | None:
        """Return in one sentence why this kernel cannot run, or None if it can.

        state: () stands for a state of the dtype and device of the input.
        """

    @abstractmethod
    def run(self, stack: Stack, sequences: Sequences, state: State) -> tuple[Tensor, State]:
        """Return the outputs of the last layer, in the form of `sequences.x`, and the final state.

        Each component of the state is [layers·directions, B, H or P], as torch.nn has it: layer by layer, forward
        before reverse.
        """
