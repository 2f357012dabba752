"""Rows of trees, chosen one by one."""

import jax.numpy as jnp
import pytest

from jaxdl.rows import choose_rows, restart

A = {"h": jnp.ones((3, 2, 4)), "n": jnp.array([1, 2, 3])}
B = {"h": jnp.full((3, 2, 4), 5.0), "n": jnp.array([7, 8, 9])}
CONDITION = jnp.array([True, False, True])


def test_rows_are_chosen_in_leaves_of_any_rank():
    chosen = choose_rows(CONDITION, A, B)
    assert chosen["n"].tolist() == [1, 8, 3]
    assert chosen["h"][:, 1, 2].tolist() == [1, 5, 1]


def test_restart_zeroes_the_rows_that_start_anew():
    assert restart(B, CONDITION)["n"].tolist() == [0, 8, 0]
    assert restart(B, CONDITION)["h"].sum((1, 2)).tolist() == [0, 40, 0]


def test_a_leaf_without_rows_is_refused():
    with pytest.raises(ValueError, match="its rows should be 3"):
        choose_rows(CONDITION, {"n": jnp.zeros((1, 3))}, {"n": jnp.zeros((1, 3))})
