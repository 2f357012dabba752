"""What placing a step on a mesh costs on one device: against plain jit of the same step.

python -m benchmarks.sharding > results.jsonl
"""

from __future__ import annotations

import dataclasses
from typing import get_args

import jax
import numpy as np

from benchmarks.harness import Call, Side, compare, emit, least_seconds, run
from experiments.image_classification import Config, make_loss, make_model
from jaxdl.data import ArraySource, Resident
from jaxdl.malloc import keep_memory
from jaxdl.models.apply import initialise
from jaxdl.train import TrainState, make_train_step
from jaxdl.train.loop import Feed
from jaxdl.train.optim import adam
from jaxdl.train.sharding import Parallel, Placement
from jaxdl.train.state import Init

CLASSES = 10
# A step as long as steps are, and one so short that little but its launch is measured.
NETWORKS = {
    "reference CNN": Config(image_size=24),
    "MLP": Config(model="mlp", widths=(256, 128), image_size=8, channels=1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of this benchmark."""

    batch_size: int = 64
    """Examples a step."""
    seconds: float = 0.25
    """Seconds that one measurement should take, about."""
    rounds: int = 15
    """Pairs of measurements."""
    warmup: int = 2
    """Pairs that go before and are not counted."""


class Task:
    """One network with a state, a step and resident data."""

    def __init__(self, network: str, batch_size: int, parallel: Parallel):
        config = NETWORKS[network]
        model = make_model(config, CLASSES)
        side = config.image_size
        rng = np.random.default_rng(0)
        source = {
            "image": rng.integers(0, 256, (1024, side, side, 1), np.uint8),
            "label": rng.integers(0, CLASSES, 1024, np.int32),
        }
        self.data = Resident(ArraySource(source), batch_size, seed=0)
        self.placement = Placement.over({"data": 1}, parallel=parallel)
        tx, axis = adam(1e-3), self.placement.axis_name
        self.step = make_train_step(make_loss(config, model), tx, axis_name=axis)
        example = np.zeros((1, side, side, config.channels), np.float32)
        init: Init = lambda key: initialise(model, key, example)  # noqa: E731
        create = jax.jit(lambda key: TrainState.create(init, tx, key))
        self.create = lambda: create(jax.random.key(0))


def plain(options: Options, network: str, count: int) -> Side:
    """The step under jax.jit, and nothing else."""

    def prepare() -> Call:
        task = Task(network, options.batch_size, "jit")
        data, step, state = task.data, task.step, task.create()
        arrays = jax.device_put(dict(data.arrays))
        jitted = jax.jit(lambda s, a, b: step(s, data.assemble(a, b)), donate_argnums=0)
        compiled = jitted.lower(state, arrays, data.batch(0)).compile()

        def call() -> None:
            nonlocal state
            for number in range(count):
                state, metrics = compiled(state, arrays, data.batch(number))
            jax.block_until_ready((state, metrics))

        return call

    return Side(name="plain jit", prepare=prepare)


def placed(options: Options, network: str, count: int, parallel: Parallel) -> Side:
    """The same step as the loop runs it."""

    def prepare() -> Call:
        task = Task(network, options.batch_size, parallel)
        feed, state = Feed(task.data, task.placement), task.placement.put(task.create())
        compiled = feed.compile_step(task.step, state).call

        def call() -> None:
            nonlocal state
            for number in range(count):
                batch = feed.put([task.data.batch(number)], stacked=False)
                state, metrics = compiled(state, feed.arrays, batch)
            jax.block_until_ready((state, metrics))

        return call

    return Side(name=f"mesh data=1, {parallel}", prepare=prepare)


def main(options: Options) -> None:
    """Prints one line of JSON for each network and way."""
    keep_memory()
    for network in NETWORKS:
        once = least_seconds(plain(options, network, 1).prepare(), 3)
        count = max(1, round(options.seconds / once))
        for parallel in get_args(Parallel):
            a, b = plain(options, network, count), placed(options, network, count, parallel)
            shared = {"rounds": options.rounds, "warmup": options.warmup}
            about = {"network": network, "steps": count, "batch_size": options.batch_size}
            emit(compare("overhead of a mesh", a, b, **shared, **about))


if __name__ == "__main__":
    run(main, Options, __doc__)
