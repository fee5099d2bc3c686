"""Ctrl-C and SIGTERM: the first one ends training after the update, the second one at once."""

import signal
import time
from types import FrameType, TracebackType
from typing import Any

_SAME_PRESS = 1.0  # seconds: torchrun passes on a Ctrl-C that the terminal has sent to every process already


class Interrupt:
    """A context in which the two signals are noted instead of obeyed.

    Attributes:
        number: the signal that came, 0 if none did.
    """

    def __init__(self) -> None:
        self.number = 0
        self._at = 0.0
        self._handlers: dict[signal.Signals, Any] = {}

    @property
    def asked(self) -> bool:
        """True once a signal came."""
        return self.number != 0

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked and now - self._at > _SAME_PRESS:
            raise KeyboardInterrupt
        if not self.asked:
            self.number, self._at = number, now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
