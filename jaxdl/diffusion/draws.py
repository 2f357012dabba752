"""Random draws by row: what is drawn for a row depends on its own key, not on its neighbours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.keys import derive
from jaxdl.types import Key


def derive_rows(keys: Key, *path: str | int | Array) -> Key:
    """Derives each row's key for `path` below its own; keys have the shape (b)."""
    return jax.vmap(lambda key: derive(key, *path))(keys)


def normal_rows(
    keys: Key, shape: tuple[int, ...], *, dtype: jnp.dtype | type = jnp.float32
) -> Float[Array, "b ..."]:
    """Draws a standard normal array of the given shape for each row."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)
