"""Dropout: its distribution, its gradient, and when it is not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.layers import Dropout, dropout

KEY = jax.random.key(4)
X = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (40, 50, 30)), jnp.float32)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_elements_are_zero_or_scaled_and_their_share_is_the_rate(rate):
    y = np.asarray(dropout(KEY, X, rate))
    dropped = y == 0
    np.testing.assert_allclose(y[~dropped], X[~dropped] / (1 - rate), rtol=2e-4)
    deviation = (rate * (1 - rate) / X.size) ** 0.5
    assert abs(dropped.mean() - rate) < 4 * deviation
    # Of every axis, no line is spared and none is dropped whole: the draws are an element's own.
    for axes in ((0, 1), (0, 2), (1, 2)):
        assert dropped.mean(axes).min() > 0
        assert dropped.mean(axes).max() < 1


def test_neighbours_are_independent():
    dropped = np.asarray(dropout(KEY, X, 0.5) == 0).ravel()
    assert abs(np.corrcoef(dropped[:-1], dropped[1:])[0, 1]) < 4 / X.size**0.5


@pytest.mark.parametrize("rate", [0.3, 1 / 3, 0.5, 1e-3])
def test_the_expectation_is_exactly_x(rate):
    """The scale is one over the probability that there really is, a multiple of 2^-16."""
    kept = np.asarray(dropout(KEY, jnp.ones(1000), rate)).max()
    probability = 1 - round(rate * 2**16) / 2**16
    assert kept * probability == pytest.approx(1, rel=1e-6)


def test_the_gradient_is_the_mask_times_the_scale():
    y, pullback = jax.vjp(lambda x: dropout(KEY, x, 0.25), X)
    gradient = np.asarray(pullback(jnp.ones_like(X))[0])
    np.testing.assert_array_equal(gradient == 0, np.asarray(y) == 0)
    np.testing.assert_allclose(gradient[gradient != 0], 1 / 0.75, rtol=1e-6)


def test_what_is_not_finite_does_not_outlive_its_drop():
    y = np.asarray(dropout(KEY, jnp.full(1000, jnp.inf), 0.5))
    assert set(np.unique(y)) == {0, np.inf}


def test_the_key_decides():
    other = dropout(jax.random.key(5), X, 0.5)
    np.testing.assert_array_equal(
        dropout(KEY, X, 0.5), jax.jit(dropout, static_argnums=2)(KEY, X, 0.5)
    )
    assert np.any(np.asarray(other) != np.asarray(dropout(KEY, X, 0.5)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_type_stays(dtype):
    assert dropout(KEY, X.astype(dtype), 0.5).dtype == dtype


def test_without_training_or_without_a_rate_the_layer_needs_no_key():
    for rate, train in ((0.5, False), (0.0, True), (0.0, False)):
        np.testing.assert_array_equal(Dropout(rate).apply({}, X, train=train), X)
    with pytest.raises(Exception, match="dropout"):
        Dropout(0.5).apply({}, X, train=True)
    y = Dropout(0.5).apply({}, X, train=True, rngs={"dropout": KEY})
    assert np.mean(np.asarray(y) == 0) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, 1 - 2**-20])
def test_a_rate_outside_its_range_raises(rate):
    with pytest.raises(ValueError, match="dropout rate"):
        dropout(KEY, X, rate)


def test_a_rate_of_zero_is_the_identity():
    np.testing.assert_array_equal(dropout(KEY, X, 0.0), X)
