"""What a person sees while a run goes on: named phases, then a bar, or plain lines."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


class _Screen:
    """The line that a phase has begun and nobody has ended; a terminal is one for all, too."""

    begun = ""
    muted = False  # in all processes of a run but the first


def mute() -> None:
    """Says and shows nothing from now on: another process does."""
    _Screen.muted = True


def say(text: str) -> None:
    """Prints a line at once, without tearing a progress bar, or the line of a phase, apart."""
    if _Screen.muted:
        return
    begun, _Screen.begun = _Screen.begun, ""
    if begun and text.startswith(begun):
        text = text[len(begun) :]
    elif begun:
        text = f"\n{text}"
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def begin(name: str) -> None:
    """Names what takes the time from now on; the next `say` of that name ends the line."""
    if _Screen.muted:
        return
    end_line()
    _Screen.begun = f"{name:<10}"
    print(_Screen.begun, end="", flush=True)


def end_line() -> None:
    """Ends the line of a phase, if one is begun."""
    if _Screen.begun:
        say(_Screen.begun)


class Note:
    """The end of a phase's line, filled in while it runs."""

    text = ""


@contextmanager
def phase(name: str) -> Iterator[Note]:
    """Names what takes the time before it starts, and then says what came of it, and the time.

    data      1,438 images (0.2 s)
    """
    note = Note()
    started = time.perf_counter()
    begin(name)
    try:
        yield note
    except BaseException:
        say(f"{name:<10}failed")
        raise
    say(f"{name:<10}{note.text} ({time.perf_counter() - started:.1f} s)")


@contextmanager
def spoken_log() -> Iterator[None]:
    """Says what jaxdl's modules log, such as a dataset that takes minutes to prepare."""
    handler = logging.Handler()
    handler.emit = lambda record: say(record.getMessage())
    logger = logging.getLogger("jaxdl")
    logger.addHandler(handler)
    propagated, logger.propagate = logger.propagate, False  # some library may log it once more
    try:
        yield
    finally:
        logger.propagate = propagated
        logger.removeHandler(handler)


class Progress:
    """A bar on a terminal, a line for each logging interval where there is none."""

    def __init__(self, start: int, steps: int):
        self.start = start
        self.steps = steps
        self._bar: tqdm | None = None

    def show(self, step: int, text: str, *, left: float) -> None:
        """Moves on to `step`, with its metrics as text; `left` is the time to the end, seconds."""
        text = f"{step}/{self.steps}  {text}  {clock(left)} left"
        if _Screen.muted or not sys.stderr.isatty():
            say(f"step {text}")
            return
        if self._bar is None:  # not before: it would be drawn across the phases
            end_line()
            self._bar = tqdm(
                total=self.steps, initial=self.start, leave=False, dynamic_ncols=True,
                bar_format="{bar} {desc}",
            )  # fmt: skip
        self._bar.set_description_str(text, refresh=False)
        self._bar.n = step
        self._bar.refresh()

    def close(self) -> None:
        """Takes the bar off the terminal."""
        if self._bar is not None:
            self._bar.close()


def clock(seconds: float) -> str:
    """Formats seconds as 1:02 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"
