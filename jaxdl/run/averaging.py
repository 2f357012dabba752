"""Averages of checkpoints: the mean of the last few weights, often better than the last."""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import numpy as np

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

    last: int = 5
    """Checkpoints to average, from the newest back; train with --keep of as many."""


def averaged(session: Session, workdir: Workdir, last: int) -> TrainState:
    """Returns the newest state with the mean of the weights of the last checkpoints.

    Where a run keeps a moving average, it is those averages that are averaged. Raises UserError
    where there are not so many checkpoints, or one cannot be read.
    """
    with contextlib.closing(session.checkpoints(workdir, read_only=True)) as checkpoints:
        if not 1 <= last <= len(checkpoints.steps):
            raise UserError(f"--last {last}: there are checkpoints of {checkpoints.steps}")
        states = []
        for step in checkpoints.steps[-last:]:
            found = checkpoints.restore(session.abstract_state(), step=step, tell=say)
            assert found is not None, "it was just listed"
            states.append(found[0])
    mean = jax.tree.map(
        lambda *leaves: np.mean([np.asarray(leaf, np.float64) for leaf in leaves], axis=0).astype(
            leaves[0].dtype
        ),
        *(state.weights for state in states),
    )
    return dataclasses.replace(states[-1], params=mean, ema=None)


def average(script: Script, options: AverageConfig) -> None:
    """Averages the last checkpoints of a run, reports on it, and exports it to RUN/model."""
    CompilationCache()
    workdir = Workdir(options.workdir)
    about = workdir.config()
    if about["experiment"] != script.name:
        raise UserError(f"--workdir {options.workdir} is a run of {about['experiment']}")
    if not workdir.checkpoints.is_dir():
        raise UserError(f"--workdir {workdir.path} has no checkpoint yet: train first")
    config = from_json(type(next(iter(script.presets.values()))), about["config"])
    session = Session.start(script.build(config), config)
    state = averaged(session, workdir, options.last)
    experiment = session.experiment
    test = experiment.finish(state, workdir, session.placement).get("test", {})
    save_model(workdir.model, experiment.model, state.params, about=experiment.about)
    say(f"mean of {options.last} checkpoints: {summary(test)}; exported to {workdir.model}")
