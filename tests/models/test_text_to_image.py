"""The network that reads: zeros are no text, padding is nothing, and every word counts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.interop.safetensors import load_model, save_model
from jaxdl.models import TextToImage
from jaxdl.models.text_to_image import TextEncoder
from tests.models.test_unet import assert_close
from tests.parameters import random_params

B, H, W, C, S, V = 3, 4, 6, 2, 5, 11
NET = TextToImage(
    C, V, text_width=12, text_layers=2, width=8, multipliers=(1,), blocks=1, attention=(True,),
    heads=2, patch=2,
)  # fmt: skip
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(B, H, W, C)), jnp.float32)
TIME = jnp.array([3.0, 250.0, 999.0])
TOKENS = jnp.array([[3, 7, 1, 4, 9], [8, 2, 5, 0, 0], [0, 0, 0, 0, 0]])
ENCODER = TextEncoder(V, width=12, layers=2, heads=2)


@pytest.fixture(scope="module")
def params():
    return random_params(NET, X, TIME, TOKENS)


@pytest.fixture(scope="module")
def run(params):
    return jax.jit(lambda *inputs: NET.apply({"params": params}, *inputs, train=False))


@pytest.fixture(scope="module")
def encoder():
    return random_params(ENCODER, TOKENS)


@jax.jit
def read(encoder, tokens):
    return ENCODER.apply({"params": encoder}, tokens, train=False)


def test_a_row_of_zeros_is_no_text(run):
    y = run(X, TIME, TOKENS)
    assert y.shape == X.shape
    nothing = NET.absent(TOKENS)
    assert_close(run(X, TIME, nothing), run(X, TIME))
    assert_close(run(X, TIME)[2], y[2])
    assert np.abs(run(X, TIME)[:2] - y[:2]).max((1, 2, 3)).min() > 1e-3


def test_zeros_after_a_text_change_nothing(run, encoder):
    longer = jnp.pad(TOKENS, ((0, 0), (0, 3)))
    assert_close(run(X, TIME, longer), run(X, TIME, TOKENS))
    short, long = read(encoder, TOKENS), read(encoder, longer)
    np.testing.assert_array_equal(short.seen, TOKENS > 0)
    np.testing.assert_array_equal(long.seen, longer > 0)
    seen = np.asarray(short.seen)
    assert_close(np.asarray(long.read[:, :S])[seen], np.asarray(short.read)[seen])


def test_a_word_by_itself_is_the_same_wherever_it_stands(encoder):
    words, read_there, _ = read(encoder, jnp.array([[3, 7, 3], [3, 1, 9]]))
    np.testing.assert_array_equal(words[0, 0], words[1, 0])
    np.testing.assert_array_equal(words[0, 0], words[0, 2])
    assert np.abs(read_there[0, 0] - read_there[1, 0]).max() > 1e-2


def test_every_word_counts_and_so_does_the_order(run):
    y = run(X, TIME, TOKENS)
    for i in range(S):
        other = run(X, TIME, TOKENS.at[0, i].set(10))
        assert np.abs(other[0] - y[0]).max() > 1e-4
        assert_close(other[1:], y[1:])  # and it is the row's own affair
    turned = run(X, TIME, TOKENS.at[0].set(TOKENS[0, ::-1]))
    assert np.abs(turned[0] - y[0]).max() > 1e-3


def test_a_word_is_read_in_the_light_of_all_others(encoder):
    @jax.jit
    @jax.grad
    def of_word(x, at):
        return read({**encoder, "embed": {"embedding": x}}, TOKENS).read[0, at].sum()

    for at in (0, S - 1):
        gradient = np.abs(of_word(encoder["embed"]["embedding"], at)).max(-1)
        told = np.flatnonzero(gradient > 1e-6)
        np.testing.assert_array_equal(told, sorted(TOKENS[0].tolist()))


def test_the_image_teaches_the_reader(params):
    """Nothing of the reader is without a gradient, but for the biases of keys."""

    def total(params):
        y = NET.apply({"params": params}, X, TIME, TOKENS, train=False)
        return (y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)).sum()

    gradients = jax.jit(jax.grad(total))(params)["encoder"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        assert "['key']['bias']" in name or np.abs(leaf).max() > 1e-6, name


def test_dropout_draws_in_training_alone(encoder):
    reader = ENCODER.clone(dropout=0.5)

    @partial(jax.jit, static_argnames="train")
    def draw(seed, *, train):
        rngs = {"dropout": jax.random.key(seed)}
        return reader.apply({"params": encoder}, TOKENS, train=train, rngs=rngs).read

    assert np.abs(draw(0, train=True) - draw(1, train=True)).max() > 1e-3
    assert_close(draw(0, train=False), read(encoder, TOKENS).read)


def test_its_folder_gives_back_what_was_saved(tmp_path, params):
    save_model(tmp_path, NET, params)
    loaded = load_model(tmp_path)
    assert loaded.model == NET
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
