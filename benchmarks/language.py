"""A language model's train step and generation, of any network in the form of `jaxdl.decode`."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Call, Side
from jaxdl.decode import generate, row_keys
from jaxdl.losses import softmax_cross_entropy
from jaxdl.metrics import Mean
from jaxdl.sampling import Sampler
from jaxdl.train import Aux, TrainState, make_train_step


def draw_tokens(vocabulary: int, b: int, t: int) -> np.ndarray:
    """Draws noise [b t], the same every time."""
    return np.random.default_rng(0).integers(0, vocabulary, (b, t), np.int32)


def init_params(model: Any) -> Any:
    """Draws a network's parameters, the same every time."""
    init = jax.jit(partial(model.init, train=False))
    return init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def compile_step(
    model: Any, tx: optax.GradientTransformation, tokens: np.ndarray
) -> tuple[Any, TrainState, dict[str, Any]]:
    """Returns the compiled train step on tokens [b t+1], a state and a batch."""
    batch = {"tokens": jnp.asarray(tokens)}

    def loss(params, model_state, batch, key, *, train):
        result: Any = model.apply({"params": params}, batch["tokens"][:, :-1], train=train)
        mean = Mean.of(softmax_cross_entropy(result[0], batch["tokens"][:, 1:]))
        return mean, Aux({"loss": mean}, model_state)

    create = partial(TrainState.create, lambda key: (init_params(model), {}), tx)
    state = jax.jit(create)(jax.random.key(0))
    step = jax.jit(make_train_step(loss, tx), donate_argnums=0)
    return step.lower(state, batch).compile(), state, batch


def temporary_bytes(model: Any, tx: optax.GradientTransformation, tokens: np.ndarray) -> int:
    """Returns what a train step needs beside its arguments and results, by XLA's own account."""
    step, *_ = compile_step(model, tx, tokens)
    return step.memory_analysis().temp_size_in_bytes


def step_side(
    name: str,
    model: Any,
    tx: optax.GradientTransformation,
    tokens: np.ndarray,
    *,
    flops: float,
    steps: int = 1,
) -> Side:
    """A measurement of as many train steps in jaxdl, each of so many FLOPs."""

    def prepare() -> Call:
        step, state, batch = compile_step(model, tx, tokens)

        def call() -> None:
            nonlocal state
            for _ in range(steps):
                state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))

        call()
        return call

    return Side(name=name, prepare=prepare, flops=steps * flops)


def generation_side(model: Any, prompts: np.ndarray, *, sampler: Sampler, limit: int) -> Side:
    """Generation of `limit` tokens a row after prompts [b s], compiled as one program."""

    def prepare() -> Call:
        b, s = prompts.shape
        step, carry = jax.tree_util.Partial(model.step, init_params(model)), model.initial_carry(b)
        lengths, keys = jnp.full(b, s, jnp.int32), row_keys(jax.random.key(1), b)
        inputs = step, carry, jnp.asarray(prompts), lengths, keys

        def call() -> None:
            jax.block_until_ready(generate(*inputs, sampler=sampler, limit=limit))

        call()
        return call

    return Side(name="jaxdl", prepare=prepare)
