"""Finds out why a step was refused: which layer, how large, at what learning rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxdl.metrics import Mean
from jaxdl.run.experiment import Session
from jaxdl.train.loop import Feed
from jaxdl.train.state import TrainState, leaf_name
from jaxdl.train.step import make_train_step
from jaxdl.types import Batch, Params


def describe_nonfinite(session: Session, state: TrainState, step: int) -> str:
    """Replays the refused step and says, in one line, what was not finite and where.

    The parameters are those that the run had when it noticed, up to two logging intervals later;
    no refused update has touched them.
    """
    experiment, placement = session.experiment, session.placement
    feed = Feed(experiment.train, placement)
    batch = feed.put([experiment.train.batch(step)], stacked=False)
    program = feed.compile(_replayed(session, step), state, out=placement.replicated)
    objective, squares = jax.device_get(program.call(state, feed.arrays, batch))
    by_layer = {leaf_name(path): float(x) ** 0.5
                for path, x in jax.tree_util.tree_leaves_with_path(squares)}  # fmt: skip
    # NaN is the worst, then the largest.
    worst = max(by_layer, key=lambda name: (by_layer[name] != by_layer[name], by_layer[name]))
    total = sum(norm**2 for norm in by_layer.values()) ** 0.5
    return (
        f"step {step} is not finite: loss {objective.compute():.4g}, gradient norm {total:.4g},"
        f" learning rate {session.learning_rate(step):.3g}, worst layer {worst}"
        f" ({by_layer[worst]:.4g}). Its update was refused and the last checkpoint is kept: lower"
        " --learning-rate, set --clip-norm, or --nonfinite skip"
    )


def _replayed(session: Session, step: int) -> Callable[[TrainState, Batch], tuple[Mean, Params]]:
    """Makes the run's own step anew, with an optimiser that only looks at what it is given.

    So it is spread over the devices, and draws, as it was and did. The function returns the mean
    objective, and of each parameter the sum of its squared gradient.
    """
    config = session.config

    def loss(params, model_state, batch, key, *, train):
        value, aux = session.loss(params, model_state, batch, key, train=train)
        return value, aux._replace(metrics={"objective": value})

    def norms(state: TrainState, batch: Batch) -> tuple[Mean, Params]:
        seen = []

        def look(updates, state, params=None):
            seen.append(updates)
            return updates, state

        train_step = make_train_step(
            loss, optax.GradientTransformation(lambda params: (), look), accum=config.accum,
            ema_decay=config.ema_decay, axis_name=session.placement.axis_name,
        )  # fmt: skip
        _, metrics = train_step(dataclasses.replace(state, step=jnp.int32(step)), batch)
        return metrics["objective"], jax.tree.map(lambda g: jnp.sum(jnp.square(g)), seen[0])

    return norms
