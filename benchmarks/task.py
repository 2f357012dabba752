"""What a train step of jaxdl is made of, compiled, measured, and weighed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from benchmarks.harness import Call, Side
from jaxdl.train import Loss, TrainState, make_train_step
from jaxdl.types import Key, Params


class Task(NamedTuple):
    """A loss, where training starts, the optimiser, and the one batch that every step takes."""

    loss: Loss
    init: Callable[[], Params]
    tx: optax.GradientTransformation
    batch: dict[str, Any]
    compiler_options: dict[str, str] | None = None

    def compile(self) -> tuple[Any, TrainState]:
        """Returns the compiled train step, and a state."""

        def create(params: Params, key: Key) -> TrainState:
            return TrainState.create(lambda _: (params, {}), self.tx, key)

        state = jax.jit(create, donate_argnums=0)(self.init(), jax.random.key(0))
        step = jax.jit(make_train_step(self.loss, self.tx), donate_argnums=0)
        lowered = step.lower(state, self.batch)
        return lowered.compile(compiler_options=self.compiler_options), state

    def temporary_bytes(self) -> int:
        """Returns what a step needs beside its arguments and results, by XLA's own account."""
        return self.compile()[0].memory_analysis().temp_size_in_bytes

    def side(self, name: str = "jaxdl", *, flops: float | None = None, steps: int = 1) -> Side:
        """Measures as many steps, each of so many FLOPs, where they are known."""

        def prepare() -> Call:
            step, state = self.compile()

            def call() -> None:
                nonlocal state
                for _ in range(steps):
                    state, metrics = step(state, self.batch)
                jax.block_until_ready((state, metrics))

            call()
            return call

        return Side(name=name, prepare=prepare, flops=flops and steps * flops)
