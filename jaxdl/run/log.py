"""Where the metrics of a run go: to its file, to TensorBoard, and to the person who waits."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jaxdl.run.board import Board
from jaxdl.run.experiment import Session
from jaxdl.run.meters import Meters, Totals, computed
from jaxdl.run.progress import Progress, say
from jaxdl.run.workdir import Workdir


class Log:
    """The log of one run, from step `start` on."""

    def __init__(self, session: Session, workdir: Workdir, meters: Meters, *, start: int):
        self.session, self.workdir, self.meters = session, workdir, meters
        self.board = Board(workdir.tensorboard, start=start)
        self.progress = Progress(start, session.steps)
        self._shown = (start, meters.stepping)

    def interval(self, step: int, stepping: float) -> None:
        """Logs the means since the last line, and starts new ones.

        `stepping` is the time, in seconds spent in steps, at which `step` was reached.
        """
        totals, self.meters.interval = self.meters.interval, {}
        rate = self.session.learning_rate(step - 1)
        self._write("train", step, {**computed(totals), "learning_rate": rate})
        before, since = self._shown
        self._shown = (step, stepping)
        seconds = max(stepping - since, 1e-9) / max(step - before, 1)
        units = f"{self.session.units_per_step / seconds:,.0f} {self.session.experiment.unit}/s"
        left = (self.session.steps - step) * seconds
        self.progress.show(step, f"{headline(totals)}  {units}", left=left)

    def evaluation(self, step: int, test: Mapping[str, float]) -> None:
        """Logs an evaluation, beside the means of the training since the last one."""
        train = computed(self.meters.epoch)
        self.meters.epoch = {}
        self.meters.evaluated = step
        both = {f"train_{name}": value for name, value in train.items() if name in test}
        self._write("evaluation", step, {**test, **both})
        epoch = step * self.session.config.batch_size / self.session.experiment.train.examples
        shown = [
            f"{name} {train.get(name, math.nan):.4f} train, {test[name]:.4f} test"
            for name in sorted(test, key=loss_first)
        ]
        say(f"epoch {epoch:<5.1f} " + "   ".join(shown))

    def _write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        self.workdir.log({"step": step, "kind": kind, **metrics})
        self.board.write(step, {f"{kind}/{name}": value for name, value in metrics.items()})

    def close(self) -> None:
        """Flushes the logs and takes the bar away."""
        self.progress.close()
        self.board.close()


def loss_first(name: str) -> tuple[bool, str]:
    """Sorts the loss before the other metrics."""
    return name != "loss", name


def headline(totals: Totals) -> str:
    """Puts an interval's metrics into a line: the loss, its companions, and refused steps if any.

    The gradient norm, which few read, is in the logs.
    """
    names = sorted(totals.keys() - {"grad_norm", "refused"}, key=loss_first)
    shown = [f"{name} {totals[name].compute():.4g}" for name in names]
    refused = totals["refused"]
    if refused.total:
        shown.append(f"refused {refused.total:.0f} of {refused.count:.0f} steps")
    return "  ".join(shown)
