"""Trains an experiment in its folder, from where it stands to the end."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxdl.backend import CompilationCache
from jaxdl.errors import RunFailed, UserError
from jaxdl.run.diagnose import describe_nonfinite
from jaxdl.run.experiment import Session
from jaxdl.run.finish import finish, summary
from jaxdl.run.interrupts import Interrupts, interrupts
from jaxdl.run.log import Log
from jaxdl.run.meters import Meters
from jaxdl.run.progress import phase, say
from jaxdl.run.report import parameter_table
from jaxdl.run.workdir import Workdir
from jaxdl.train.checkpoint import Checkpoints
from jaxdl.train.loop import Compiled, Interval, evaluator, fit
from jaxdl.train.state import TrainState
from jaxdl.train.step import make_eval_step, make_train_step


class Interrupted(Exception):
    """A signal came, and what was to be saved is saved."""


def train(session: Session, workdir: Workdir, cache: CompilationCache) -> dict[str, Any]:
    """Trains to the end, resuming where there is something to resume, and returns the report.

    Raises SystemExit(143) on SIGTERM and SystemExit(130) on SIGINT, after saving; RunFailed where
    the loss is not finite and the config says to stop; UserError where the memory does not do.
    """
    if report := workdir.report():
        say(f"{workdir.path} is complete: {summary(report['test'])} (--overwrite starts anew)")
        return report
    with (
        interrupts() as stop,
        told_when_out_of_memory(),
        contextlib.closing(session.checkpoints(workdir)) as checkpoints,
    ):
        state, meters = restore_or_create(session, workdir, checkpoints)
        log = Log(session, workdir, meters, start=int(state.step))
        try:
            with contextlib.closing(log), meters.running():
                run = Run(session, workdir, log, checkpoints, stop, cache)
                state, test = run.to_end(state)
        except Interrupted:
            say("interrupted and saved: the same command resumes")
            raise SystemExit(stop.status) from None
        return finish(session, workdir, state, meters, test)


def restore_or_create(
    session: Session, workdir: Workdir, checkpoints: Checkpoints
) -> tuple[TrainState, Meters]:
    """Takes up the newest usable checkpoint and fits the logs to it, or initialises."""
    told: list[str] = []
    with phase("state") as note:
        found = checkpoints.restore(session.abstract_state(), tell=told.append, set_aside=True)
        if found is None:
            state, meters = session.initial_state(), Meters()
            note.text = "initialised"
        else:
            state, meters = found[0], Meters.from_json(found[1])
            note.text = f"resumed at step {int(state.step)} of {session.steps}"
    for line in told:
        say(line)
    workdir.rewind(int(state.step), evaluated=meters.evaluated)
    if found is None:
        say(parameter_table(state.params))
        session.experiment.preview(workdir)
    return state, meters


@dataclasses.dataclass(frozen=True)
class Run:
    """A run in progress, and where it writes."""

    session: Session
    workdir: Workdir
    log: Log
    checkpoints: Checkpoints
    stop: Interrupts
    cache: CompilationCache

    def to_end(self, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        """Steps, logs, evaluates and saves; returns the final state and its evaluation."""
        session, config = self.session, self.session.config
        evaluate = evaluator(
            make_eval_step(session.experiment.loss),
            session.experiment.test,
            placement=session.placement,
        )
        test = self.milestone(state, evaluate) if int(state.step) else None
        late: Interval | None = None  # read one interval late, while the device is at the next
        saved = time.monotonic()
        for number, interval in enumerate(self.intervals(state)):
            state = interval.state
            if late is not None:
                self.account(late, state)
            late = interval
            overdue = time.monotonic() - saved > 60 * config.save_minutes
            if session.evaluates_at(interval.step) or overdue or self.stop():
                self.account(late, state)
                test = self.milestone(state, evaluate)
                late, saved = None, time.monotonic()
            if config.profile:
                self.trace(number, last=interval.step == session.steps)
        assert test is not None, "the last step is always evaluated"
        return state, test

    def intervals(self, state: TrainState) -> Iterator[Interval]:
        """Starts the one loop, from where the state stands."""
        session, config = self.session, self.session.config
        tx, _ = config.optimiser(session.steps)
        return fit(
            make_train_step(
                session.experiment.loss, tx, accum=config.accum, ema_decay=config.ema_decay
            ),
            state,
            session.experiment.train,
            until=session.steps,
            every=[config.log_every, session.evaluate_every],
            chunk=session.chunk,
            placement=session.placement,
            stop=self.stop,
            on_compile=self.tell_compiled,
        )

    def account(self, interval: Interval, state: TrainState) -> None:
        """Reads an interval's metrics into the meters, and logs a line where one is due."""
        for first, metrics in interval.metrics:
            refused = self.log.meters.add(first, metrics)
            if refused is not None and self.session.config.nonfinite == "stop":
                raise RunFailed(describe_nonfinite(self.session, state, refused))
        if interval.step % self.session.config.log_every == 0:
            self.log.interval(interval.step)

    def milestone(
        self, state: TrainState, evaluate: Callable[..., dict[str, float] | None]
    ) -> dict[str, float] | None:
        """Evaluates where that is due, then saves; leaves after it where a signal came."""
        step, meters = int(state.step), self.log.meters
        meters.tick()
        test = None
        if self.session.evaluates_at(step) and not self.stop():
            test = evaluate(state, stop=self.stop)
        if test is not None and meters.evaluated < step:
            self.log.evaluation(step, test)
        meters.tick(stepping=False)
        self.checkpoints.save(step, state, meters.to_json(), test)
        meters.tick(stepping=False)
        if self.stop():
            raise Interrupted
        return test

    def tell_compiled(self, program: Compiled) -> None:
        """Says how long a compilation took, whether the cache served, and what a step costs."""
        self.log.meters.tick(stepping=False)
        say(f"{'compile':<10}{describe_program(program, self.cache)} ({program.seconds:.1f} s)")

    def trace(self, number: int, *, last: bool) -> None:
        """Traces the second interval, the first one with everything compiled."""
        if number == 0 and not last:
            jax.profiler.start_trace(str(self.workdir.profile))
        elif number == 1:
            jax.profiler.stop_trace()
            say(f"profile   {self.workdir.profile}")


def describe_program(program: Compiled, cache: CompilationCache) -> str:
    """Tells where a program came from, its operations and its memory."""
    parts = ["from the cache" if cache.served else "anew"]
    if program.flops:
        parts.append(f"{program.flops / 1e9:.3g} GFLOP a call")
    if program.bytes:
        parts.append(f"{program.bytes / 2**20:,.0f} MiB a device")
    return ", ".join(parts)


@contextlib.contextmanager
def told_when_out_of_memory() -> Iterator[None]:
    """Answers running out of device memory with the flags that need less of it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        raise UserError(
            "the device is out of memory: halve --batch-size, or keep it and double --accum,"
            " or compute in --precision bf16"
        ) from error
