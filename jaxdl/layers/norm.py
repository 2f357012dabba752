"""Normalisation: of each token over its channels, or of each image over groups of channels.

    y = n scale + offset,    n = (x - mean) / sqrt(variance + epsilon)

Layer normalisation (Ba et al. 2016, arXiv:1607.06450) takes mean and variance of a token. RMS
normalisation (Zhang and Sennrich 2019, arXiv:1910.07467) leaves the mean where it is, and takes the
mean square in the variance's place. Group normalisation (Wu and He 2018, arXiv:1803.08494) takes
them of a group of channels over all pixels; its scale and offset may be one a channel, or one a
channel and example: with the second a vector that describes the example can steer a network (FiLM,
Perez et al. 2018, arXiv:1709.07871).

The gradients are written out, of tokens on CPU alone. They keep x, and what is of the size of a
vector, where JAX's own would keep n and more: on CPU the time goes into touching memory and into
sums, which here are products with ones (see `jaxdl.product`). They are by reverse mode.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdl.product import column_sums, middle_sums, on_cpu, row_sums, written


def layer_norm(
    x: Float[Array, "*t d"],
    scale: Float[Array, " d"],
    bias: Float[Array, " d"] | None = None,
    *,
    epsilon: float = 1e-5,
) -> Float[Array, "*t d"]:
    """Normalises the last axis by its mean and its variance, which is taken about that mean.

    Within in float32, out in the type of x.
    """
    return _in_float32(x, scale, bias, True, epsilon)


def rms_norm(
    x: Float[Array, "*t d"], scale: Float[Array, " d"], *, epsilon: float = 1e-6
) -> Float[Array, "*t d"]:
    """Computes x / sqrt(mean(x^2) + epsilon) scale over the last axis, as `layer_norm` does."""
    return _in_float32(x, scale, None, False, epsilon)


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
    return middle_sums(x) / math.prod(x.shape[1:-1])


def _standardise(x: Array, centre: bool, epsilon: float) -> tuple[Array, Array]:
    """Computes n, of x less its mean if `centre`, and the rate 1 / sqrt(variance + epsilon)."""
    d = x.shape[-1]
    if centre:
        x = x - row_sums(x) / d
    rate = lax.rsqrt(row_sums(x * x) / d + epsilon)
    return x * rate, rate


def _in_float32(x, scale, bias, centre, epsilon):
    norm = _token_norm_on_cpu if on_cpu() else _token_norm
    wide, scale, bias = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), (x, scale, bias))
    return norm(wide, scale, bias, centre, epsilon).astype(x.dtype)


def _token_norm(x, scale, bias, centre, epsilon):
    y = _standardise(x, centre, epsilon)[0] * _beside(scale, x)
    return y if bias is None else y + _beside(bias, x)


_token_norm_on_cpu = jax.custom_vjp(_token_norm, nondiff_argnums=(3, 4))


def _token_forward(x, scale, bias, centre, epsilon):
    return _token_norm(x, scale, bias, centre, epsilon), (x, scale, bias)


def _token_backward(centre, epsilon, saved, g):
    # dx = rate (g scale - E[g scale] - n E[g scale n]), the second where the mean was taken off.
    x, scale, bias = saved
    g = written(g)
    n, rate = _standardise(x, centre, epsilon)
    of_scale, of_bias = column_sums(g * n), None if bias is None else column_sums(g)
    g = g * _beside(scale, x)
    dx = g - n * (row_sums(g * n) / x.shape[-1])
    dx = dx - row_sums(g) / x.shape[-1] if centre else dx
    return dx * rate, of_scale, of_bias


_token_norm_on_cpu.defvjp(_token_forward, _token_backward)


def _beside(v: Float[Array, " d"], x: Float[Array, "*t d"]) -> Array:
    """Lays numbers beside every token."""
    return jnp.expand_dims(v, range(x.ndim - 1))


class _Saved(NamedTuple):
    """What the gradient of group normalisation needs."""

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
    mean = _by_group(pixel_means(x.astype(jnp.float32)), groups)
    centred = x.astype(jnp.float32) - _each(mean)
    variance = _by_group(pixel_means(centred * centred), groups)
    saved = _Saved(x, mean, lax.rsqrt(variance + epsilon), scale, offset)
    y = saved.normalised() * _each(scale) + _each(offset)
    # Quotients, here and in the gradient, are written once; see `jaxdl.product.written`.
    return (y / (1 + jnp.exp(-y)) if silu else y).astype(x.dtype), saved


def _backward(groups, epsilon, silu, saved, g):
    # dx = rate (g scale - E[g scale] - n E[g scale n]), the means over a group and all pixels.
    del epsilon
    x, _, rate, scale, offset = saved
    n, g = saved.normalised(), g.astype(jnp.float32)
    if silu:
        y = n * _each(scale) + _each(offset)
        e = jnp.exp(jnp.minimum(y, 30))  # sigmoid(y) = e / (1 + e)
        g = (1 + y / (1 + e)) * e * g / (1 + e)
    of_offset, of_scale = pixel_means(g), pixel_means(g * n)
    constant, slope = (_by_group(scale * v, groups) for v in (of_offset, of_scale))
    dx = _each(rate) * (g * _each(scale) - _each(constant) - n * _each(slope))
    pixels = x.shape[1] * x.shape[2]
    return dx.astype(x.dtype), of_scale * pixels, of_offset * pixels


_group_norm.defvjp(_forward, _backward)


def _each(v: Float[Array, "b c"]) -> Float[Array, "b 1 1 c"]:
    """Lays numbers beside every pixel, written, lest each pixel compute them anew."""
    return written(v)[:, None, None]


def _by_group(x: Float[Array, "b c"], groups: int) -> Float[Array, "b c"]:
    """Gives each channel the average of its group."""
    b, c = x.shape
    means = x.reshape(b, groups, c // groups).mean(-1, keepdims=True)
    return jnp.broadcast_to(means, (b, groups, c // groups)).reshape(b, c)


class LayerNorm(nn.Module):
    """`layer_norm` as a layer, in float32 within; parameters as `nn.LayerNorm` has them."""

    epsilon: float = 1e-5
    use_bias: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*t d"]) -> Float[Array, "*t d"]:
        """Normalises the last axis of x; parameters "scale" (d) and "bias" (d)."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        x, scale, bias = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), (x, scale, bias))
        return layer_norm(x, scale, bias, epsilon=self.epsilon).astype(dtype)


class RMSNorm(nn.Module):
    """`rms_norm` as a layer, in float32 within; the parameter as `nn.RMSNorm` has it."""

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*t d"]) -> Float[Array, "*t d"]:
        """Normalises the last axis of x; parameter "scale" (d)."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        dtype = canonicalize_dtype(x, scale, dtype=self.dtype)
        x, scale = jnp.asarray(x, jnp.float32), jnp.asarray(scale, jnp.float32)
        return rms_norm(x, scale, epsilon=self.epsilon).astype(dtype)


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
