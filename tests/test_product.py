"""Sums as products with ones, and what is written once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.product import column_sums, middle_sums, on_cpu, row_sums, written


@pytest.mark.parametrize("shape", [(4, 5, 7), (3, 16, 24), (2, 6, 9, 12), (13, 11), (2, 0, 3)])
def test_sums_are_sums(shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    *rows, _ = range(x.ndim)
    for ours, axes in (column_sums, rows), (middle_sums, rows[1:]):
        np.testing.assert_allclose(ours(x), np.asarray(x).sum(tuple(axes)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        row_sums(x), np.asarray(x).sum(-1, keepdims=True), rtol=1e-5, atol=1e-5
    )


def test_what_is_written_once_is_what_it_was():
    x = jnp.asarray([0.0, -0.0, 2e-38, -3e38, jnp.inf, -jnp.inf, jnp.nan])
    for y in written(x), jax.jit(written)(x):
        np.testing.assert_array_equal(y, x)
        np.testing.assert_array_equal(np.signbit(y), np.signbit(x))


@pytest.mark.skipif(not on_cpu(), reason="of XLA on CPU")
def test_what_is_written_is_computed_once():
    def products(through):
        def both(x):
            y = through(jnp.cos(x) * x * 2)
            return y @ y, (y + 1).T

        text = jax.jit(both).lower(jnp.ones((64, 64))).compile().as_text()
        return text.count(" multiply(")

    assert products(written) < products(lambda y: y)
