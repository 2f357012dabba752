"""Trees of rows: every leaf has the leading axis b, as a carry's does."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxdl.types import PyTree


def choose_rows(condition: Bool[Array, " b"], a: PyTree, b: PyTree) -> PyTree:
    """Takes each row from `a` where the condition is true, else from `b`, leaf by leaf.

    Raises ValueError for a leaf whose leading axis is not b.
    """

    def choose(x: Array, y: Array) -> Array:
        if x.shape[:1] != condition.shape:
            raise ValueError(f"a leaf has shape {x.shape}; its rows should be {len(condition)}")
        return jnp.where(condition.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    return jax.tree.map(choose, a, b)


def restart(carry: PyTree, reset: Bool[Array, " b"]) -> PyTree:
    """Zeroes the rows of a carry whose sequences start anew; raises as `choose_rows` does."""
    return choose_rows(reset, jax.tree.map(jnp.zeros_like, carry), carry)
