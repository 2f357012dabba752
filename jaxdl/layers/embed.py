"""What a token is, and where it stands: embeddings, and positional encodings.

Sinusoids are added to embeddings, learned positions too (an `Embed` of their own); rotary ones turn
queries and keys within attention.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num


class Embed(nn.Embed):
    """A vector for each token; `attend` scores vectors by their products with each of these.

    The parameter is that of `nn.Embed`. It is looked up as it is, and what is found is brought to
    `dtype`: so the gradients of a token that comes often are summed in the parameter's type. A sum
    in bf16 would stop growing at 256 times what is added to it.
    """

    def __call__(self, inputs: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """Looks tokens up; one that there is not, below 0 too, is all NaN.

        Raises ValueError for what is no integer.
        """
        if not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise ValueError(f"tokens are integers, and these are {inputs.dtype}")
        table = jnp.asarray(self.embedding)  # parameters may be NumPy's
        found = table.at[inputs].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return found if self.dtype is None else found.astype(self.dtype)


def places(segments: Int[Array, "b t"]) -> Int[Array, "b t"]:
    """Numbers the tokens of each segment from 0."""
    at = jnp.arange(segments.shape[1])[None]
    begins = segments != jnp.pad(segments, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    return at - jax.lax.cummax(jnp.where(begins, at, 0), axis=1)


def sinusoids(positions: Num[Array, "*b t"], width: int) -> Float[Array, "*b t d"]:
    """Computes sin and cos of positions / 10000^(2i / d), the sines first.

    Section 3.5 of Vaswani et al. 2017 (arXiv:1706.03762), which has them in turn. Raises ValueError
    for an odd width.
    """
    angles = _angles(positions, width)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotate(x: Float[Array, "b t n k"], positions: Int[Array, "#b t"]) -> Float[Array, "b t n k"]:
    """Turns each pair (x_i, x_(i + k/2)) by positions / 10000^(2i / k); float32 within.

    Products of queries and keys then depend on how far apart they stand, and on nothing else of
    where (Su et al. 2021, equation 34, arXiv:2104.09864).
    """
    angles = _angles(positions, x.shape[-1])[:, :, None]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _angles(positions: Num[Array, "*b t"], width: int) -> Float[Array, "*b t _"]:
    if width % 2:
        raise ValueError(f"positions are told by pairs of numbers; a width of {width} is odd")
    rates = 10_000.0 ** (-jnp.arange(width // 2) / (width // 2))
    return positions[..., None] * rates.reshape((1,) * positions.ndim + rates.shape)
