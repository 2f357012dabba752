"""A language model's train step and generation, of any network in the form of `jaxdl.decode`."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Call, Side
from benchmarks.task import Task
from jaxdl.decode import generate, row_keys
from jaxdl.losses import softmax_cross_entropy
from jaxdl.metrics import Mean
from jaxdl.sampling import Sampler
from jaxdl.train import Aux


def draw_tokens(vocabulary: int, b: int, t: int) -> np.ndarray:
    """Draws noise [b t], the same every time."""
    return np.random.default_rng(0).integers(0, vocabulary, (b, t), np.int32)


def init_params(model: Any) -> Any:
    """Draws a network's parameters, the same every time."""
    init = jax.jit(partial(model.init, train=False))
    return init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def language_task(model: Any, tx: optax.GradientTransformation, tokens: np.ndarray) -> Task:
    """Makes the task of telling each next token of tokens [b t+1]."""

    def loss(params, model_state, batch, key, *, train):
        result: Any = model.apply({"params": params}, batch["tokens"][:, :-1], train=train)
        mean = Mean.of(softmax_cross_entropy(result[0], batch["tokens"][:, 1:]))
        return mean, Aux({"loss": mean}, model_state)

    return Task(loss, partial(init_params, model), tx, {"tokens": jnp.asarray(tokens)})


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
