"""Trains an experiment in its folder, from where it stands to the end."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax

from jaxdl.backend import CompilationCache
from jaxdl.errors import RunFailed, UserError
from jaxdl.run import hosts
from jaxdl.run.diagnose import describe_nonfinite
from jaxdl.run.experiment import Session
from jaxdl.run.finish import finish
from jaxdl.run.interrupts import SAVED, Interrupts, interrupts, left_at_a_signal
from jaxdl.run.log import Log
from jaxdl.run.meters import Meters
from jaxdl.run.progress import begin, phase, say
from jaxdl.run.report import parameter_table
from jaxdl.run.workdir import Workdir
from jaxdl.train.checkpoint import Checkpoints
from jaxdl.train.loop import Interval, fit
from jaxdl.train.program import Compiled
from jaxdl.train.state import TrainState

SMALL_FILES = 2**17  # bytes of a checkpoint's folders, records and indices


class Interrupted(Exception):
    """A signal came, and what was to be saved is saved."""


def train(session: Session, workdir: Workdir, cache: CompilationCache) -> dict[str, Any]:
    """Trains to the end, resuming where there is something to resume, and returns the report.

    Raises SystemExit(143) on SIGTERM and SystemExit(130) on SIGINT, after saving; RunFailed where
    the loss is not finite and the config says to stop; UserError where the memory does not do.
    """
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
            say(SAVED)
            raise SystemExit(stop.status) from None
    with told_when_out_of_memory(), left_at_a_signal():
        if stop.signal is not None:  # it came after the last save had begun
            signal.raise_signal(stop.signal)
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
        with phase("preview") as note:
            if hosts.is_first():
                session.experiment.preview(workdir)
            note.text = str(workdir.figures)
    return state, meters


@dataclasses.dataclass
class Run:
    """A run in progress, and where it writes."""

    session: Session
    workdir: Workdir
    log: Log
    checkpoints: Checkpoints
    stop: Interrupts
    cache: CompilationCache
    served: int = 0  # programs that the cache had served when a compilation was last told

    def to_end(self, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        """Steps, logs, evaluates and saves; returns the final state and its evaluation."""
        session, config = self.session, self.session.config
        evaluate = session.evaluator()
        test = self.milestone(state, evaluate) if int(state.step) else None
        # Read one interval late, while the device is at the next; with the time it ended at.
        late: tuple[Interval, float] | None = None
        saved = time.monotonic()
        with contextlib.closing(self.intervals(state)) as intervals:
            for interval in intervals:
                state = interval.state
                if late is not None:
                    self.account(*late, state)
                self.log.meters.tick()
                late = interval, self.log.meters.stepping
                # Clocks differ, and all have to come to the save.
                overdue = hosts.by_first(time.monotonic() - saved > 60 * config.save_minutes)
                if session.evaluates_at(interval.step) or overdue or self.stop():
                    self.account(*late, state)
                    test = self.milestone(state, evaluate)
                    late, saved = None, time.monotonic()
        assert test is not None, "the last step is always evaluated"
        return state, test

    def intervals(self, state: TrainState) -> Generator[Interval, None, None]:
        """Starts the one loop, from where the state stands."""
        session, config = self.session, self.session.config
        if int(state.step) < session.steps:
            begin("compile")
        self.served = self.cache.served
        intervals = fit(
            session.train_step(),
            state,
            session.experiment.train,
            until=session.steps,
            every=[config.log_every, session.evaluate_every],
            chunk=session.chunk,
            placement=session.placement,
            stop=self.stop,
            on_compile=self.tell_compiled,
        )
        yield from self.traced(intervals) if config.profile else intervals

    def account(self, interval: Interval, stepping: float, state: TrainState) -> None:
        """Reads an interval's metrics into the meters, and logs a line where one is due.

        `stepping` is the time in steps at which the interval ended, `state` the newest.
        """
        for first, metrics in interval.metrics:
            refused = self.log.meters.add(first, metrics)
            if refused is not None and self.session.config.nonfinite == "stop":
                raise RunFailed(describe_nonfinite(self.session, state, refused))
        if interval.step % self.session.config.log_every == 0:
            self.log.interval(interval.step, stepping)

    def milestone(
        self, state: TrainState, evaluate: Callable[..., dict[str, float] | None]
    ) -> dict[str, float] | None:
        """Evaluates where that is due, then saves; leaves after it where a signal came."""
        step, meters = int(state.step), self.log.meters
        meters.tick()
        test = None
        # A resumed run has evaluated already; only at the end are the numbers needed again.
        due = meters.evaluated < step or step == self.session.steps
        if due and self.session.evaluates_at(step) and not self.stop():
            test = evaluate(state, stop=self.stop)
        if test is not None and meters.evaluated < step:
            self.log.evaluation(step, test)
            self.session.experiment.observe(state, self.workdir)
        meters.tick(stepping=False)
        self.workdir.check_room(sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + SMALL_FILES)
        hosts.barrier(f"save {step}")
        self.checkpoints.save(step, state, meters.to_json(), test)
        meters.tick(stepping=False)
        if self.stop():
            raise Interrupted
        return test

    def tell_compiled(self, program: Compiled) -> None:
        """Says how long a compilation took, whether the cache served, and what a call costs."""
        self.log.meters.tick(stepping=False)
        parts = ["from the cache" if self.cache.served > self.served else "anew"]
        self.served = self.cache.served
        if program.flops:
            parts.append(f"{program.flops / 1e9:.3g} GFLOP a call")
        if program.bytes:
            parts.append(f"{program.bytes / 2**20:,.0f} MiB a device")
        say(f"{'compile':<10}{', '.join(parts)} ({program.seconds:.1f} s)")

    def traced(self, intervals: Iterator[Interval]) -> Iterator[Interval]:
        """Traces the second interval, the first one with everything compiled."""
        folder, meters = self.workdir.profile, self.log.meters
        yield next(intervals)
        meters.tick()
        jax.profiler.start_trace(str(folder))
        meters.tick(stepping=False)
        try:
            second = next(intervals, None)
            jax.block_until_ready(second and second.state.step)
        finally:
            meters.tick()
            jax.profiler.stop_trace()
            meters.tick(stepping=False)
        if second is None:
            say("profile   the first interval was the last: lower --log-every")
            return
        say(f"profile   {folder}")
        yield second
        yield from intervals


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
