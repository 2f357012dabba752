"""Attention within the segments of packed rows, and positions that begin anew in each."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class KeysValues(NamedTuple):
    """What a query looks through, by head."""

    keys: Float[Array, "b s n k"]
    values: Float[Array, "b s n k"]


def attend(
    queries: Float[Array, "b t n k"], memory: KeysValues, mask: Bool[Array, "b t s"]
) -> tuple[Float[Array, "b t n k"], Float[Array, "b n t s"]]:
    """Computes softmax(q k^T / sqrt(k)) v where the mask is true, and the weights; in float32.

    Where all of a query's mask is false its weights are uniform, and mean nothing.
    """
    scores = jnp.einsum("btnk,bsnk->bnts", queries, memory.keys).astype(jnp.float32)
    scores = jnp.where(mask[:, None], scores / queries.shape[-1] ** 0.5, -1e30)
    weights = jax.nn.softmax(scores)
    values = memory.values
    return jnp.einsum("bnts,bsnk->btnk", weights.astype(values.dtype), values), weights


def places(segments: Int[Array, "b t"]) -> Int[Array, "b t"]:
    """Numbers the tokens of each segment from 0."""
    at = jnp.arange(segments.shape[1])[None]
    begins = segments != jnp.pad(segments, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    return at - jax.lax.cummax(jnp.where(begins, at, 0), axis=1)


def sinusoids(positions: Int[Array, "b t"], width: int) -> Float[Array, "b t d"]:
    """Computes sin and cos of positions / 10000^(2i / d) (section 3.5), the sines first."""
    rates = 10_000.0 ** (-jnp.arange(width // 2) / (width // 2))
    angles = positions[:, :, None] * rates[None, None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Attention(nn.Module):
    """Multi-head attention; `remember` makes keys and values of what is to be looked through."""

    heads: int
    width: int
    dtypes: dict[str, Any]

    def setup(self):
        """Makes the layers."""
        self.query, self.key, self.value, self.out = (
            nn.Dense(self.width, name=name, **self.dtypes)
            for name in ("query", "key", "value", "out")
        )

    def remember(self, x: Float[Array, "b s d"]) -> KeysValues:
        """Projects x to keys and values."""
        return KeysValues(*(self._split(layer(x)) for layer in (self.key, self.value)))

    def __call__(
        self, x: Float[Array, "b t d"], memory: KeysValues, mask: Bool[Array, "b t s"]
    ) -> Float[Array, "b t d"]:
        """Attends from x to memory; the weights are sown under "weights"."""
        y, weights = attend(self._split(self.query(x)), memory, mask)
        self.sow("intermediates", "weights", weights)
        return self.out(y.reshape(x.shape))

    def _split(self, x: Float[Array, "b t d"]) -> Float[Array, "b t n k"]:
        return x.reshape(*x.shape[:2], self.heads, -1)
