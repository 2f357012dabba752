"""What a person sees while a run goes on: named phases, then a bar, or plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tqdm import tqdm


def say(text: str) -> None:
    """Prints a line at once, without tearing a progress bar apart."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


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
    print(f"{name:<10}", end="", flush=True)
    try:
        yield note
    except BaseException:
        print("failed", flush=True)
        raise
    print(f"{note.text} ({time.perf_counter() - started:.1f} s)", flush=True)


class Progress:
    """A bar on a terminal, a line for each logging interval where there is none."""

    def __init__(self, start: int, steps: int, unit: str):
        self.unit = unit
        self.steps = steps
        self.bar = tqdm(
            total=steps, initial=start, unit="step", disable=not sys.stderr.isatty(),
            dynamic_ncols=True, leave=False, smoothing=0.1,
        )  # fmt: skip
        self._from = (start, time.perf_counter())

    def show(self, step: int, metrics: Mapping[str, float], rate: float) -> None:
        """Moves on to `step`, with its metrics and its rate in units a second."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        text += f"  {rate:,.0f} {self.unit}/s"
        if not self.bar.disable:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(step - self.bar.n)
            return
        start, since = self._from
        seconds = time.perf_counter() - since
        left = (self.steps - step) * seconds / max(step - start, 1)
        say(f"step {step}/{self.steps}  {text}  {clock(left)} left")

    def close(self) -> None:
        """Takes the bar off the terminal."""
        self.bar.close()


def clock(seconds: float) -> str:
    """Formats seconds as 1:02 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"
