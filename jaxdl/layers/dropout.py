"""Dropout (Srivastava et al. 2014), with few random bits and no bias."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.types import Key


def dropout(
    key: Key, x: Float[Array, "..."], rate: float, *, shared: tuple[int, ...] = ()
) -> Float[Array, "..."]:
    """Sets each element to zero with probability `rate` and scales the others by 1 / (1 - rate).

    Along the axes `shared` all elements live or die together: with time among them this is
    variational dropout (Gal and Ghahramani 2016, arXiv:1512.05287).

    The probability is rounded to a multiple of 2^-16 and the scale is that of the rounded one, so
    the expectation is exactly x. Sixteen bits an element are a quarter of the time of uniform
    floats, which on CPU is felt.

    Raises ValueError unless 0 <= rate < 1.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"a dropout rate lies in [0, 1), got {rate}")
    threshold = round(rate * 2**16)
    if threshold == 0:
        return x
    if threshold == 2**16:
        raise ValueError(f"a dropout rate of {rate} would drop everything")
    axes = {axis % x.ndim for axis in shared}
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    keep = jax.random.bits(key, shape, jnp.uint16) >= threshold
    return jnp.where(keep, x * (2**16 / (2**16 - threshold)), 0).astype(x.dtype)


class Dropout(nn.Module):
    """`dropout` as a layer: the identity unless `train`; draws from the rng "dropout"."""

    rate: float
    shared: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, train: bool) -> Float[Array, "..."]:
        """Drops elements of x, of any shape, while training."""
        if not train or self.rate == 0:
            return x
        return dropout(self.make_rng("dropout"), x, self.rate, shared=self.shared)
