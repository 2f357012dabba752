"""SIGTERM and SIGINT ask a run to save and leave; a second one does not ask."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Which signal has come, if any."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        """Tells whether the run was asked to stop."""
        return self.signal is not None

    @property
    def status(self) -> int:
        """The exit status that says which signal ended the run: 143 or 130."""
        return 128 + (self.signal or 0)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = number


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Listens for SIGTERM and SIGINT while the block runs."""
    caught = Interrupts()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, caught._receive) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
