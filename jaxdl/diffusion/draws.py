"""Random draws by row: what is drawn for a row depends on its own key, not on its neighbours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.keys import derive
from jaxdl.types import Key


def derive_rows(keys: Key, *path: str | int | Array) -> Key:
    """Derives each row's key for `path` below its own.

    Raises ValueError for a single key: there is one a row, as `jaxdl.decode.row_keys` makes them.
    """
    if keys.ndim != 1:
        raise ValueError(f"keys are one a row, made by row_keys, not of shape {keys.shape}")
    return jax.vmap(lambda key: derive(key, *path))(keys)


def normal_rows(
    keys: Key, shape: tuple[int, ...], *, dtype: jnp.dtype | type = jnp.float32
) -> Float[Array, "b ..."]:
    """Draws a standard normal array of the given shape for each row."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)
