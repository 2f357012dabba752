"""What an experiment is, and the one way in which every experiment is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np

from jaxdl.data.pipeline import Pipeline
from jaxdl.errors import UserError
from jaxdl.run.config import RunConfig
from jaxdl.run.workdir import Workdir
from jaxdl.train.checkpoint import Checkpoints
from jaxdl.train.sharding import Placement, parse_mesh
from jaxdl.train.state import Init, TrainState
from jaxdl.train.step import Loss
from jaxdl.types import Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that tells one experiment from another; the rest is shared."""

    dataset: str
    model: nn.Module
    about: Mapping[str, Any]  # what the user of the exported model has to know, plain JSON
    init: Init
    loss: Loss
    train: Pipeline
    test: Pipeline
    metric: tuple[str, Literal["max", "min"]]  # names the best checkpoint
    unit: str = "examples"
    units_per_example: int = 1
    # Draws figures of the inputs before training, and of the results after it, into the workdir's
    # figures/; the latter returns further final numbers and sections of the report.
    preview: Callable[[Workdir], None] = lambda workdir: None
    finish: Callable[[TrainState, Workdir, Placement], dict[str, Any]] = lambda *_: {}


@dataclasses.dataclass(frozen=True)
class Session:
    """An experiment with a config, on the devices at hand."""

    experiment: Experiment
    config: RunConfig
    placement: Placement

    @classmethod
    def start(cls, experiment: Experiment, config: RunConfig) -> Session:
        """Chooses the devices; raises UserError where the batches do not split over them.

        Also where the network does not take what it is to be given.
        """
        placement = Placement.over(parse_mesh(config.mesh))
        placement.check(config.batch_size, flag="--batch-size", accum=config.accum)
        placement.check(config.eval_batch_size, flag="--eval-batch-size")
        session = cls(experiment, config, placement)
        try:
            session.abstract_state()
        except ValueError as error:  # the network's own words for shapes that do not fit it
            raise UserError(f"the network cannot be built: {error}") from error
        return session

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every example has been seen at least once."""
        return len(self.experiment.train)

    @property
    def steps(self) -> int:
        """Steps of the whole run: as many as `epochs` passes take, rounded up."""
        examples = round(self.config.epochs * self.experiment.train.examples)
        return max(1, -(-examples // self.config.batch_size))

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations."""
        return self.config.eval_every or self.steps_per_epoch

    def evaluates_at(self, step: int) -> bool:
        """Tells whether the run is evaluated after this many steps."""
        return step % self.evaluate_every == 0 or step == self.steps

    @property
    def units_per_step(self) -> int:
        """Examples, or tokens, that a step trains on."""
        return self.config.batch_size * self.experiment.units_per_example

    def learning_rate(self, step: int) -> float:
        """The learning rate of step number `step`."""
        _, schedule = self.config.optimiser(self.steps)
        return float(np.asarray(schedule(step)))

    @property
    def chunk(self) -> int:
        """Steps in one XLA program."""
        if self.config.scan:
            return self.config.scan
        alone = jax.default_backend() == "cpu" or not self.experiment.train.arrays
        return 1 if alone else self.config.log_every

    def initial_state(self) -> TrainState:
        """Initialises the state, on every device."""
        create = jax.jit(self._create, out_shardings=self.placement.replicated)
        return create(jax.random.key(self.config.seed))

    def abstract_state(self) -> TrainState:
        """Gives shapes, types and shardings of the state, without computing it."""
        shapes = jax.eval_shape(self._create, jax.random.key(self.config.seed))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.placement.replicated),
            shapes,
        )

    def _create(self, key: Key) -> TrainState:
        tx, _ = self.config.optimiser(self.steps)
        ema = self.config.ema_decay is not None
        return TrainState.create(self.experiment.init, tx, key, ema=ema)

    def checkpoints(self, workdir: Workdir, *, read_only: bool = False) -> Checkpoints:
        """Opens the run's checkpoints."""
        return Checkpoints(
            workdir.checkpoints,
            keep=self.config.keep,
            best=self.experiment.metric,
            read_only=read_only,
        )
