"""Halving and doubling images by their formulas, gradients included; patches, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.layers.resample import double, fold, halve, unfold

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 3)), jnp.float32)


def plainly_halved(x):
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def plainly_doubled(x):
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


@pytest.mark.parametrize(
    ("ours", "plain"), [(halve, plainly_halved), (double, plainly_doubled)], ids=["halve", "double"]
)
def test_it_is_its_formula_and_so_is_its_gradient(ours, plain):
    y = ours(X)
    np.testing.assert_allclose(y, plain(X), atol=1e-6)
    g = jax.random.normal(jax.random.key(1), y.shape)
    (a,), (b,) = (jax.vjp(f, X)[1](g) for f in (ours, plain))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_half_of_the_double_is_the_image():
    np.testing.assert_allclose(halve(double(X)), X, rtol=1e-6)


@pytest.mark.parametrize(("h", "w"), [(3, 6), (4, 5)])
def test_odd_sizes_do_not_halve(h, w):
    with pytest.raises(ValueError, match=f"{h}x{w} pixels do not halve evenly"):
        halve(X[:, :h, :w])


def test_patches_are_squares_of_pixels_and_nothing_is_lost():
    y = fold(X, 2)
    assert y.shape == (2, 2, 3, 12)
    for i, j in np.ndindex(2, 3):
        square = X[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        np.testing.assert_array_equal(y[:, i, j], square.reshape(2, 12))
    np.testing.assert_array_equal(unfold(y, 2), X)
    np.testing.assert_array_equal(fold(X, 1), X)
