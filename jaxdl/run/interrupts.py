"""SIGTERM and SIGINT ask a run to save and leave; a second one, or one in the report, does not ask.

On several processes JAX's preemption service, which listens for SIGTERM itself, has all of them
stop after the same step, whichever was asked. It costs nothing until one is.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jax.experimental.multihost_utils import reached_preemption_sync_point

from jaxdl.run import hosts
from jaxdl.run.progress import say

SAVED = "interrupted and saved: the same command resumes"


class Interrupts:
    """Which signal has come, if any."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._together = hosts.several()
        self._asked = 0  # times, the same in all processes: the clock by which they agree
        self._agreed = False

    def __call__(self) -> bool:
        """Tells whether the run was asked to stop."""
        if not self._together:
            return self.signal is not None
        if not self._agreed:
            self._asked += 1
            self._agreed = reached_preemption_sync_point(self._asked)
        return self._agreed

    @property
    def status(self) -> int:
        """The exit status that says which signal ended the run: 143 or 130."""
        return 128 + (self.signal or signal.SIGTERM)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = number
        if self._together:
            signal.raise_signal(signal.SIGTERM)  # which JAX tells to all


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Listens for SIGTERM and SIGINT while the block runs."""
    caught = Interrupts()
    numbers = (signal.SIGINT,) if hosts.several() else (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, caught._receive) for number in numbers}
    try:
        yield caught
    finally:
        if hosts.several():  # from here on JAX's notice would reach nobody
            before[signal.SIGTERM] = signal.SIG_DFL
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def left_at_a_signal() -> Iterator[None]:
    """Has SIGTERM and SIGINT end the block where it stands: what it makes can be made again.

    Of several processes the one that has the signal tells the others, which may wait for it.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise hosts.Left(128 + number)

    before = {n: signal.signal(n, leave) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except hosts.Left:
        say(SAVED)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
