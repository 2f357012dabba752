"""What an experiment is, and the one way in which every experiment is trained."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np

from jaxdl.data.pipeline import Pipeline
from jaxdl.errors import UserError
from jaxdl.metrics import Metrics
from jaxdl.run.config import RunConfig
from jaxdl.run.workdir import Workdir
from jaxdl.train.checkpoint import Checkpoints
from jaxdl.train.fsdp import fully_sharded
from jaxdl.train.loop import evaluator
from jaxdl.train.rules import Rule
from jaxdl.train.sharding import Placement, parse_mesh
from jaxdl.train.state import Init, TrainState
from jaxdl.train.step import Loss, make_eval_step, make_train_step
from jaxdl.types import Batch, Key, PyTree, Step


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
    rules: tuple[Rule, ...] = ()  # how --mesh tensor=N splits the parameters
    # Of streams, what so many rows carry before their first batch.
    carry: Callable[[int], PyTree] | None = None
    # Draws figures of the inputs before training, and of the results after it, into the workdir's
    # figures/; the latter returns further final numbers and sections of the report.
    preview: Callable[[Workdir], None] = lambda workdir: None
    finish: Callable[[TrainState, Workdir, Placement], dict[str, Any]] = lambda *_: {}
    # Called after every evaluation, to write what shows how far the network is into samples/.
    observe: Callable[[TrainState, Workdir], None] = lambda *_: None


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
        placement = Placement.over(
            parse_mesh(config.mesh), rules=experiment.rules, parallel=config.parallel
        )
        placement.check(config.batch_size, flag="--batch-size", accum=config.accum)
        placement.check(config.eval_batch_size, flag="--eval-batch-size")
        if experiment.carry is not None and config.parallel == "pmap":
            raise UserError("--parallel pmap has no streams: use jit or shard_map")
        check_shares(placement, config.batch_size)
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
    def loss(self) -> Loss:
        """The experiment's loss, as the devices compute it."""
        return fully_sharded(self.experiment.loss, self.placement)

    def train_step(self) -> Step[TrainState, Batch, Metrics]:
        """Makes the pure train step, as the devices compute it."""
        tx, _ = self.config.optimiser(self.steps)
        config, axis_name = self.config, self.placement.axis_name
        return make_train_step(
            self.loss, tx, accum=config.accum, ema_decay=config.ema_decay, axis_name=axis_name
        )

    def evaluator(self) -> Callable[..., dict[str, float] | None]:
        """Makes the evaluation over the test set, see `jaxdl.train.evaluator`."""
        eval_step = make_eval_step(self.loss, axis_name=self.placement.axis_name)
        return evaluator(
            eval_step, self.experiment.test, placement=self.placement,
            carry=self._carry(self.config.eval_batch_size),
        )  # fmt: skip

    def _carry(self, rows: int) -> Callable[[], PyTree] | None:
        carry = self.experiment.carry
        return None if carry is None else functools.partial(carry, rows)

    @property
    def chunk(self) -> int:
        """Steps in one XLA program."""
        if self.config.scan:
            return self.config.scan
        alone = jax.default_backend() == "cpu" or not self.experiment.train.arrays
        return 1 if alone else self.config.log_every

    def initial_state(self) -> TrainState:
        """Initialises the state, each device its part of it."""
        # Not an array of this process's device, which would have no place on the others'. Nor made
        # within: of a key that it knows the compiler draws all weights itself, one by one.
        data = np.asarray(jax.random.key_data(jax.random.key(self.config.seed)))
        create = lambda data: self._create(jax.random.wrap_key_data(data))  # noqa: E731
        shardings = self.placement.shardings(jax.eval_shape(create, data))
        return jax.jit(create, out_shardings=shardings)(data)

    def abstract_state(self) -> TrainState:
        """Gives shapes, types and shardings of the state, without computing it."""
        key = jax.random.key(self.config.seed)
        return self.placement.abstract(jax.eval_shape(self._create, key))

    def _create(self, key: Key) -> TrainState:
        tx, _ = self.config.optimiser(self.steps)
        ema, carry = self.config.ema_decay is not None, self._carry(self.config.batch_size)
        start = None if carry is None else carry()
        return TrainState.create(self.experiment.init, tx, key, ema=ema, carry=start)

    def checkpoints(self, workdir: Workdir, *, read_only: bool = False) -> Checkpoints:
        """Opens the run's checkpoints."""
        return Checkpoints(
            workdir.checkpoints,
            keep=self.config.keep,
            milestone=self.evaluates_at,
            best=self.experiment.metric,
            read_only=read_only,
        )


def check_shares(placement: Placement, batch_size: int) -> None:
    """Raises UserError where a process would not hold just the rows of a batch that it reads."""
    processes = jax.process_count()
    held = placement.batch().addressable_devices_indices_map((batch_size,)).values()
    rows = {row for index in held if index for row in range(*index[0].indices(batch_size))}
    if len(rows) * processes != batch_size:
        raise UserError(
            f"--mesh gives a process {len(rows)} of {batch_size} rows of a batch, and not the"
            f" {batch_size // processes} that each of {processes} reads: use all devices, and keep"
            " the axis tensor within those of one process"
        )
