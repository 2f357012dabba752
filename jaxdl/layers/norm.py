"""Group normalisation (Wu and He 2018, arXiv:1803.08494), channels last, of each example alone.

    y = n scale + offset,    n = (x - mean) / sqrt(variance + epsilon)

Mean and variance are of a group of channels over all pixels. Scale and offset may be one a channel,
or one a channel and example: with the second a vector that describes the example can steer a
network (FiLM, Perez et al. 2018, arXiv:1709.07871).

The gradient is written out. It keeps x alone, and what is of the size of a vector, where JAX's own
would keep n, y, and the sigmoid of y too: on CPU the time goes into touching memory, not into
arithmetic. Gradients are by reverse mode.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def group_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, "#b c"],
    offset: Float[Array, "#b c"],
    *,
    groups: int,
    epsilon: float = 1e-5,
    silu: bool = False,
) -> Float[Array, "b h w c"]:
    """Normalises each group of channels; within in float32, out in the type of x.

    With `silu` that of y follows, y sigmoid(y). Raises ValueError where the channels do not split
    into so many groups.
    """
    b, _, _, c = x.shape
    if c % groups:
        raise ValueError(f"{c} channels do not split into {groups} groups")
    scale, offset = (jnp.broadcast_to(v.astype(jnp.float32), (b, c)) for v in (scale, offset))
    return _group_norm(x, scale, offset, groups, epsilon, silu)


def pixel_means(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Averages over the pixels of each image."""
    if jax.default_backend() != "cpu":
        return x.mean((1, 2))
    # As `jaxdl.layers.conv.column_sums`: products with ones run on all cores, and a sum on one.
    x = x.reshape(len(x), -1, x.shape[-1])
    return jnp.einsum("bn,bnc->bc", jnp.full(x.shape[:2], 1 / x.shape[1], x.dtype), x)


class _Saved(NamedTuple):
    """What the gradient needs."""

    x: Float[Array, "b h w c"]
    mean: Float[Array, "b c"]
    rate: Float[Array, "b c"]  # 1 / sqrt(variance + epsilon)
    scale: Float[Array, "b c"]
    offset: Float[Array, "b c"]

    def normalised(self) -> Float[Array, "b h w c"]:
        return (self.x.astype(jnp.float32) - _each(self.mean)) * _each(self.rate)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _group_norm(x, scale, offset, groups, epsilon, silu):
    return _forward(x, scale, offset, groups, epsilon, silu)[0]


def _forward(x, scale, offset, groups, epsilon, silu):
    # The variance is E[x^2] - E[x]^2, which takes one pass over x. That is exact where the mean is
    # not large beside the spread, so a first guess of the mean is taken off before.
    guess = _by_group(x[:, 0, 0].astype(jnp.float32), groups)
    near = x.astype(jnp.float32) - _each(guess)
    mean = _by_group(pixel_means(near), groups)
    variance = jnp.maximum(_by_group(pixel_means(near * near), groups) - mean**2, 0)
    saved = _Saved(x, guess + mean, lax.rsqrt(variance + epsilon), scale, offset)
    y = saved.normalised() * _each(scale) + _each(offset)
    return (nn.silu(y) if silu else y).astype(x.dtype), saved


def _backward(groups, epsilon, silu, saved, g):
    # dx = rate (g scale - E[g scale] - n E[g scale n]), the means over a group and all pixels.
    del epsilon
    x, _, rate, scale, offset = saved
    n, g = saved.normalised(), g.astype(jnp.float32)
    if silu:
        y = n * _each(scale) + _each(offset)
        s = jax.nn.sigmoid(y)
        g = lax.optimization_barrier(g * s * (1 + y * (1 - s)))  # written once, though read thrice
    of_offset, of_scale = pixel_means(g), pixel_means(g * n)
    constant, slope = (_by_group(scale * v, groups) for v in (of_offset, of_scale))
    dx = _each(rate) * (g * _each(scale) - _each(constant) - n * _each(slope))
    pixels = x.shape[1] * x.shape[2]
    return dx.astype(x.dtype), of_scale * pixels, of_offset * pixels


_group_norm.defvjp(_forward, _backward)


def _each(v: Float[Array, "b c"]) -> Float[Array, "b 1 1 c"]:
    """Lays numbers beside every pixel."""
    return v[:, None, None]


def _by_group(x: Float[Array, "b c"], groups: int) -> Float[Array, "b c"]:
    """Gives each channel the average of its group."""
    b, c = x.shape
    means = x.reshape(b, groups, c // groups).mean(-1, keepdims=True)
    return jnp.broadcast_to(means, (b, groups, c // groups)).reshape(b, c)


class GroupNorm(nn.Module):
    """`group_norm` with a learned scale and offset a channel, and a vector's on top of them."""

    groups: int = 8  # or as many as divide the channels, gcd(groups, c)
    silu: bool = False  # follows
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], film: Float[Array, "b _"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Normalises x; parameters "scale" (c) and "bias" (c).

        `film` (b, 2c) is a further scale, 0 for none, and a further offset of each example: y
        becomes y (1 + scale) + offset.
        """
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,), self.param_dtype)
        offset = self.param("bias", nn.initializers.zeros, (c,), self.param_dtype)
        scale, offset = scale.astype(jnp.float32)[None], offset.astype(jnp.float32)[None]
        if film is not None:
            more, further = jnp.split(film.astype(jnp.float32), 2, axis=-1)
            scale, offset = scale * (1 + more), offset * (1 + more) + further
        return group_norm(x, scale, offset, groups=math.gcd(self.groups, c), silu=self.silu)
