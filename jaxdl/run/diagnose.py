"""Finds out why a step was refused: which layer, how large, at what learning rate."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdl.keys import derive
from jaxdl.run.experiment import Session
from jaxdl.train.loop import Feed
from jaxdl.train.state import TrainState, leaf_name
from jaxdl.train.step import accumulate
from jaxdl.types import Batch


def describe_nonfinite(session: Session, state: TrainState, step: int) -> str:
    """Replays the refused step and says, in one line, what was not finite and where.

    The parameters are those that the run had when it noticed, up to two logging intervals later;
    no refused update has touched them.
    """
    config, experiment = session.config, session.experiment

    def norms(state: TrainState, batch: Batch):
        key = derive(state.key, "train", step)
        sums, *_ = accumulate(session.loss, state, batch, key, config.accum)
        count = sums.objective.count
        squares = jax.tree.map(lambda g: jnp.sum(jnp.square(g / count)), sums.total)
        return sums.objective.total / count, squares

    feed = Feed(experiment.train, session.placement)
    batch = feed.put([experiment.train.batch(step)], stacked=False)
    program = jax.jit(lambda s, a, b: norms(s, experiment.train.assemble(a, b)))
    loss, squares = jax.device_get(program(state, feed.arrays, batch))
    by_layer = {leaf_name(path): float(x) ** 0.5
                for path, x in jax.tree_util.tree_leaves_with_path(squares)}  # fmt: skip
    # NaN is the worst, then the largest.
    worst = max(by_layer, key=lambda name: (by_layer[name] != by_layer[name], by_layer[name]))
    total = sum(norm**2 for norm in by_layer.values()) ** 0.5
    return (
        f"step {step} is not finite: loss {float(loss):.4g}, gradient norm {total:.4g}, learning"
        f" rate {session.learning_rate(step):.3g}, worst layer {worst} ({by_layer[worst]:.4g}). Its"
        " update was refused and the last checkpoint is kept: lower --learning-rate, set"
        " --clip-norm, or --nonfinite skip"
    )
