"""Averages of checkpoints: the mean of the last few weights, often better than the last."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxdl.backend import CompilationCache
from jaxdl.errors import UserError
from jaxdl.interop.safetensors import save_model
from jaxdl.run.cli import Script, VerbConfig, from_json
from jaxdl.run.experiment import Session
from jaxdl.run.finish import summary
from jaxdl.run.progress import say
from jaxdl.run.workdir import Workdir
from jaxdl.train.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class AverageConfig(VerbConfig):
    """Options of `average`."""

    last: int = 3
    """Evaluations whose checkpoints are averaged, the newest ones; a run keeps those of --keep."""
    mesh: str | None = None
    """Devices, by axis, e.g. data=1 [default: as the run was trained]."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        if self.last < 1:
            raise UserError("--last must be at least 1")


def last_evaluations(session: Session, saved: Sequence[int], last: int) -> list[int]:
    """Returns the steps of the last evaluations up to the newest checkpoint.

    They follow from the config alone: what else was saved, by the clock or at a signal, is none of
    them, and neither is the best checkpoint where it is older.

    Args:
      session: the run.
      saved: steps of its checkpoints, ascending.
      last: how many evaluations.

    Raises UserError where there were not so many, or a checkpoint of one is not kept.
    """
    evaluated = [step for step in range(1, max(saved, default=0) + 1) if session.evaluates_at(step)]
    if len(evaluated) < last:
        raise UserError(f"--last {last}: the run has {len(evaluated)} evaluations, at {evaluated}")
    steps = evaluated[-last:]
    if gone := sorted({*steps} - {*saved}):
        raise UserError(
            f"--last {last}: those evaluations are of steps {steps}, and no checkpoint of {gone} is"
            f" there; take fewer, or train with --keep {last}"
        )
    return steps


def averaged(session: Session, workdir: Workdir, last: int) -> tuple[list[int], TrainState]:
    """Returns the steps of the last evaluations, and the newest state with their mean weights.

    Where a run keeps a moving average, it is those averages that are averaged. Raises UserError as
    `last_evaluations` does, and where a checkpoint cannot be read.
    """
    with contextlib.closing(session.checkpoints(workdir, read_only=True)) as checkpoints:
        steps = last_evaluations(session, checkpoints.steps, last)
        states = []
        for step in steps:
            found = checkpoints.restore(session.abstract_state(), step=step, tell=say)
            assert found is not None, "it was just listed"
            states.append(found[0])
    mean = jax.tree.map(_mean, *(state.weights for state in states))
    return steps, dataclasses.replace(states[-1], params=mean, ema=None)


def _mean(*leaves: Array) -> Array:
    """Computes the mean in float64; it has the type of the leaves, and lies where they do."""
    mean = np.mean([np.asarray(leaf, np.float64) for leaf in leaves], axis=0)
    return jax.device_put(mean.astype(leaves[0].dtype), leaves[0].sharding)


def average(script: Script, options: AverageConfig) -> None:
    """Averages a run's last evaluations, and exports the mean to RUN/model with its figures.

    Its numbers are the section "average" of the report, if the run is complete, and of what is
    exported: beside them the report keeps those of the run's own weights. The folder is locked
    meanwhile.
    """
    CompilationCache()
    workdir = Workdir(options.workdir)
    about = workdir.config()
    if about["experiment"] != script.name:
        raise UserError(f"--workdir {options.workdir} is a run of {about['experiment']}")
    if not workdir.checkpoints.is_dir():
        raise UserError(f"--workdir {workdir.path} has no checkpoint yet: train first")
    config = from_json(type(next(iter(script.presets.values()))), about["config"])
    config = dataclasses.replace(config, mesh=options.mesh or config.mesh)
    with workdir.locked():
        report = workdir.report()
        session = Session.start(script.build(config), config)
        steps, state = averaged(session, workdir, options.last)
        test, sections = _evaluated(session, workdir, state)
        numbers, experiment = {"steps": steps, "test": test}, session.experiment
        described = {**experiment.about, "average": numbers}
        save_model(workdir.model, experiment.model, state.params, about=described)
        if report is not None:
            workdir.write_report(report | {"average": numbers | sections})
    say(f"mean after steps {steps}: {summary(test)}; exported to {workdir.model}")


def _evaluated(
    session: Session, workdir: Workdir, state: TrainState
) -> tuple[dict[str, float], dict[str, Any]]:
    """Evaluates a state and draws its figures: its final numbers, and further sections."""
    test = session.evaluator()(state) or {}
    sections = session.experiment.finish(state, workdir, session.placement)
    return test | sections.pop("test", {}), sections
