"""Embeddings in 16 bits, and tokens that there are not."""

import itertools
from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.layers import Embed

TABLE = {"params": {"embedding": jnp.arange(6.0).reshape(3, 2) / 7}}


def test_embeddings_are_rows_of_the_table_in_the_type_that_is_asked_for():
    tokens = jnp.array([[2, 0], [1, 1]])
    on_the_host = jax.tree.map(np.asarray, TABLE)
    for dtype, table in itertools.product((None, jnp.bfloat16), (TABLE, on_the_host)):
        found = Embed(3, 2, dtype=dtype).apply(table, tokens)
        assert found.dtype == (dtype or jnp.float32)
        np.testing.assert_array_equal(found, TABLE["params"]["embedding"][tokens].astype(dtype))


def test_a_token_that_there_is_not_is_nan():
    for dtype in (jnp.int32, jnp.int8):
        found = Embed(3, 2).apply(TABLE, jnp.array([3, -1, 2], dtype))
        np.testing.assert_array_equal(np.isnan(found), [[True] * 2, [True] * 2, [False] * 2])


def test_tokens_that_are_no_integers_are_refused():
    with pytest.raises(ValueError, match="tokens are integers"):
        unwrap(Embed.__call__)(Embed(3, 2).bind(TABLE), jnp.array([True]))


def test_the_gradient_of_a_token_that_comes_often_is_whole_in_16_bits():
    """A sum in bf16 would stand still at 256."""
    layer, tokens = Embed(3, 2, dtype=jnp.bfloat16), jnp.ones(1000, jnp.int32)
    total = lambda variables: layer.apply(variables, tokens).astype(jnp.float32).sum()  # noqa: E731
    gradient = jax.grad(total)(TABLE)["params"]["embedding"]
    np.testing.assert_array_equal(gradient, [[0, 0], [1000, 1000], [0, 0]])
