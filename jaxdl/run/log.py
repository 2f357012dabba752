"""Where the metrics of a run go: to its file, to TensorBoard, and to the person who waits."""

from __future__ import annotations

from collections.abc import Mapping

from tensorboardX import SummaryWriter

from jaxdl.run.experiment import Session
from jaxdl.run.meters import Meters, computed
from jaxdl.run.progress import Progress, say
from jaxdl.run.workdir import Workdir


class Log:
    """The log of one run, from step `start` on."""

    def __init__(self, session: Session, workdir: Workdir, meters: Meters, *, start: int):
        self.session, self.workdir, self.meters = session, workdir, meters
        _, self.schedule = session.config.optimiser(session.steps)
        self.board = SummaryWriter(str(workdir.tensorboard), purge_step=start)
        self.progress = Progress(start, session.steps, session.experiment.unit)
        self._shown = (start, meters.stepping)

    def interval(self, step: int) -> None:
        """Logs the means since the last line, and starts new ones."""
        self.meters.tick()
        metrics = computed(self.meters.interval)
        self.meters.interval = {}
        rate = float(self.schedule(step - 1))
        self._write("train", step, {**metrics, "learning_rate": rate})
        before, since = self._shown
        seconds = max(self.meters.stepping - since, 1e-9)
        self._shown = (step, self.meters.stepping)
        self.progress.show(step, metrics, (step - before) * self.session.units_per_step / seconds)

    def evaluation(self, step: int, test: Mapping[str, float]) -> None:
        """Logs an evaluation, beside the means of the training since the last one."""
        train = computed(self.meters.epoch)
        self.meters.epoch = {}
        self.meters.evaluated = step
        both = {f"train_{name}": value for name, value in train.items() if name in test}
        self._write("evaluation", step, {**test, **both})
        epoch = f"epoch {step / self.session.steps_per_epoch:.3g}"
        shown = [f"{name} {both.get(f'train_{name}', float('nan')):.4f} train, {value:.4f} test"
                 for name, value in test.items()]  # fmt: skip
        say(f"{epoch:<10}" + "   ".join(shown))

    def _write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        self.workdir.log({"step": step, "kind": kind, **metrics})
        for name, value in metrics.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flushes the logs and takes the bar away."""
        self.progress.close()
        self.board.close()
