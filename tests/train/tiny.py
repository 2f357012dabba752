"""A tiny classifier with all that a step has to carry: dropout, a mask, and a state of its own."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.data import ArraySource
from jaxdl.keys import derive
from jaxdl.layers import dropout
from jaxdl.losses import softmax_cross_entropy
from jaxdl.metrics import Mean, correct
from jaxdl.train import Aux, TrainState

D, HIDDEN, V = 5, 7, 3
RNG = np.random.default_rng(0)


def init(key):
    inner, outer = jax.random.split(key)
    params = {
        "inner": {"kernel": jax.random.normal(inner, (D, HIDDEN)), "bias": jnp.ones(HIDDEN)},
        "outer": {"kernel": jax.random.normal(outer, (HIDDEN, V)), "bias": jnp.zeros(V)},
    }
    return params, {"running": jnp.zeros(D)}


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"][None]


def make_loss(rate=0.0):
    def loss(params, model_state, batch, key, *, train):
        x = batch["x"]
        h = jnp.tanh(dense(params["inner"], x))
        if train:
            h = dropout(derive(key, "dropout"), h, rate)
            model_state = {"running": 0.75 * model_state["running"] + 0.25 * x.mean(0)}
        logits = dense(params["outer"], h)
        mask = batch.get("mask")
        value = Mean.of(softmax_cross_entropy(logits, batch["y"]), mask)
        right = Mean.of(correct(logits, batch["y"]), mask)
        return value, Aux({"loss": value, "accuracy": right}, model_state)

    return loss


def make_batch(b, seed=0, *, masked=True):
    """Makes a batch whose halves, quarters and eighths all count different numbers of rows."""
    rng = np.random.default_rng(seed)
    batch = {
        "x": rng.normal(size=(b, D)).astype(np.float32),
        "y": rng.integers(0, V, b).astype(np.int32),
    }
    return batch | ({"mask": np.arange(b) < 0.7 * b} if masked else {})


def make_source(n):
    return ArraySource(make_batch(n, seed=1, masked=False))


def make_state(tx, *, ema=False):
    return jax.jit(lambda key: TrainState.create(init, tx, key, ema=ema))(jax.random.key(7))


def to_numpy(tree):
    """Copies a tree off the device, typed keys as their words."""

    def copy(leaf):
        typed = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        leaf = jax.random.key_data(leaf) if typed else leaf
        return np.array(leaf)

    return jax.tree.map(copy, tree)


def assert_same(a, b):
    """Asserts that two trees are equal, bit for bit."""
    a, b = to_numpy(a), to_numpy(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b, tolerance=1e-5):
    """Asserts that each leaf is equal within `tolerance` of its largest element.

    Or of 0.01, for a bias that starts at zero and hardly moves is all rounding.
    """
    a, b = to_numpy(a), to_numpy(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1e-2, np.abs(y).max()))
