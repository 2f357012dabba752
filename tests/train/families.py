"""A small network of each kind, with its loss and its data, trained on any mesh, in any way."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.image_classification import Config, make_loss
from jaxdl.data import ArraySource, Resident
from jaxdl.losses import softmax_cross_entropy
from jaxdl.metrics import Mean, correct
from jaxdl.models import ReferenceCNN, ResidualCNN
from jaxdl.models.apply import apply, initialise
from jaxdl.train import Aux, TrainState, evaluator, fit, make_eval_step, make_train_step
from jaxdl.train.fsdp import fully_sharded
from jaxdl.train.program import Compiled
from jaxdl.train.sharding import Placement
from tests.train import tiny

CLASSES, N, B, STEPS, LARGE = 3, 53, 16, 20, 20
# Brightness, flips and crops all draw; so does the dropout before a dense layer.
RECIPE = Config(image_size=6, channels=1, widths=(4, 6), brightness=0.2, flip=True, crop_padding=1)
STILL = Config(image_size=6, channels=1, widths=(4,))


class TokenModel(nn.Module):
    """Embeds tokens; one block of attention and of an MLP, named as the rules have it."""

    @nn.compact
    def __call__(self, tokens, *, train):
        del train
        x = nn.Embed(12, 8, name="embed")(tokens)
        x = x + nn.MultiHeadDotProductAttention(4, name="attention")(x, x)
        x = x + nn.Dense(8, name="down")(nn.gelu(nn.Dense(16, name="up")(x)))
        return nn.Dense(CLASSES, name="head")(x.mean(1))


def token_loss(params, model_state, batch, key, *, train):
    del key
    logits, model_state = apply(TokenModel(), params, model_state, batch["tokens"], train=train)
    value = Mean.of(softmax_cross_entropy(logits, batch["label"]), batch.get("mask"))
    right = Mean.of(correct(logits, batch["label"]), batch.get("mask"))
    return value, Aux({"loss": value, "accuracy": right}, model_state)


def images(axis_name, family):
    """Returns (model, loss, arrays) of a network on images."""
    model, recipe = {
        "cnn": (ReferenceCNN(CLASSES, widths=(4, 6), hidden=8, dropout=0.5), RECIPE),
        "residual": (ResidualCNN(CLASSES, widths=(4,), groups=2), STILL),
        "batch": (ResidualCNN(CLASSES, widths=(4,), norm="batch", axis_name=axis_name), STILL),
    }[family]
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (N, 6, 6, 1)).astype(np.uint8)
    labels = rng.integers(0, CLASSES, N).astype(np.int32)
    return model, make_loss(recipe, model), {"image": pixels, "label": labels}


def task(family, axis_name):
    """Returns (init, loss, source) of a family."""
    if family == "tiny":
        return tiny.init, tiny.make_loss(0.5), tiny.make_source(N)
    if family == "tokens":
        tokens = np.random.default_rng(5).integers(0, 12, (N, 5)).astype(np.int32)
        arrays = {"tokens": tokens, "label": tokens[:, 0] % CLASSES}
        model, loss, example = TokenModel(), token_loss, tokens[:1]
    else:
        model, loss, arrays = images(axis_name, family)
        example = jnp.zeros((1, 6, 6, 1))
    return lambda key: initialise(model, key, example), loss, ArraySource(arrays)


class Trained(NamedTuple):
    """What came of a run, off the devices, and the program that ran."""

    losses: np.ndarray
    state: TrainState
    test: dict[str, float]
    program: Compiled
    shardings: Any


@functools.cache
def trained(family, mesh=(("data", 1),), *, accum=1, chunk=1, **options):
    """Trains a family for 20 steps over a mesh, and evaluates it there."""
    placement = Placement.over(dict(mesh), large=LARGE, **options)
    init, loss, source = task(family, placement.axis_name)
    loss = fully_sharded(loss, placement)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
    create = jax.jit(lambda key: TrainState.create(init, tx, key, ema=True))
    axis = {"axis_name": placement.axis_name}
    programs = []
    (end,) = fit(
        make_train_step(loss, tx, accum=accum, ema_decay=0.9, **axis),
        create(jax.random.key(7)),
        Resident(source, B, seed=3),
        until=STEPS,
        every=[STEPS],
        chunk=chunk,
        placement=placement,
        on_compile=programs.append,
    )
    test = Resident(source, B, seed=None)
    evaluate = evaluator(make_eval_step(loss, **axis), test, placement=placement)
    losses = [np.atleast_1d(m["loss"].total) / m["loss"].count for _, m in end.metrics]
    return Trained(
        losses=np.concatenate(losses),
        state=tiny.to_numpy(end.state),
        test=evaluate(end.state),
        program=programs[0],
        shardings=jax.tree.map(lambda leaf: leaf.sharding, end.state),
    )
