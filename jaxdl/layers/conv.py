"""Convolution, bias and max-pooling, channels last, with gradients that suit XLA's CPU backend.

On CPU, XLA's own gradient of max-pooling takes about half of the reference CNN's train step, and
its bias gradient as long as a small convolution. The forms here compute the same numbers; on other
backends the plain ones are used, which are best there. What was measured is in `docs/design.md`.

Gradients are by reverse mode (`jax.grad`, `jax.vjp`); forward mode works on accelerators alone.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from jaxdl.layers.dense import dense
from jaxdl.product import column_sums, on_cpu, written

AXES = ("NHWC", "HWIO", "NHWC")
OF_X, OF_G = ("CHWN", "IHWO", "HWNC"), ("CHWN", "IHWO", "HWCN")  # of a kernel's gradient


def conv(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c o"],
    bias: Float[Array, " o"] | None = None,
) -> Float[Array, "b h w o"]:
    """Convolves with stride 1, zero padding keeping the size.

    y[b, i, j, o] = sum_{p, q, c} x[b, i + p - kh // 2, j + q - kw // 2, c] kernel[p, q, c, o]
                    + bias[o]

    Raises ValueError for kernels of an even size, which have no centre.
    """
    if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ValueError(f"kernels have odd sizes, got {kernel.shape[0]}x{kernel.shape[1]}")
    x, kernel, bias = promote_dtype(x, kernel, bias)
    if not on_cpu():
        return _biased(_conv(x, kernel), bias)
    if kernel.shape[:2] == (1, 1):
        return dense(x, kernel[0, 0], bias)
    return _conv_on_cpu(x, kernel, bias)


def max_pool(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b i j c"]:
    """Takes the maximum of each size x size window, side by side; what is left over is dropped.

    The gradient goes to the window's maximum, on a tie to the first in row-major order.
    """
    height, width = (side // size * size for side in x.shape[1:3])
    x = x[:, :height, :width]
    return _max_pool_on_cpu(x, size) if on_cpu() else nn.max_pool(x, (size,) * 2, (size,) * 2)


class Conv(nn.Module):
    """A convolution of stride 1 that keeps the size, with a bias."""

    features: int
    size: int = 3
    use_bias: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Callable = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        """Convolves x; parameters "kernel" (size, size, c, o) and "bias" (o,)."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        return conv(*promote_dtype(x, kernel, bias, dtype=self.dtype))


def _conv(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=AXES)


def _biased(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias[None, None, None]


@jax.custom_vjp
def _conv_on_cpu(x: Array, kernel: Array, bias: Array | None) -> Array:
    few = x.shape[-1] <= 4 and x.shape[2] % 4 == 0
    return _biased((_conv_of_few_channels if few else _conv)(x, kernel), bias)


def _conv_of_few_channels(x: Array, kernel: Array, at_once: int = 4) -> Array:
    """Computes neighbouring outputs of a row at once, as groups of output channels.

    A convolution gathers kh kw c inputs for every output position, and with the few channels of an
    image the gathering takes longer than the arithmetic. A kernel that holds copies of itself side
    by side, each one column further, gathers only at every `at_once`-th position.
    """
    (kh, kw), (b, h, w, _) = kernel.shape[:2], x.shape
    shifted = [((0, 0), (i, at_once - 1 - i), (0, 0), (0, 0)) for i in range(at_once)]
    wide = jnp.concatenate([jnp.pad(kernel, shift) for shift in shifted], -1)
    same = [(kh // 2, kh // 2), (kw // 2, kw // 2)]
    y = lax.conv_general_dilated(x, wide, (1, at_once), same, dimension_numbers=AXES)
    return y.reshape(b, h, w, kernel.shape[-1])


def _conv_forward(x: Array, kernel: Array, bias: Array | None) -> tuple[Array, tuple]:
    return _conv_on_cpu(x, kernel, bias), (x, kernel, bias)


def _conv_backward(saved: tuple, g: Array) -> tuple[Array, Array, Array | None]:
    x, kernel, bias = saved
    g = written(g)  # else its masks are computed again, and transposed
    (of_x,) = jax.vjp(lambda x: _conv(x, kernel), x)[1](g)
    of_bias = None if bias is None else column_sums(g)
    return of_x, _kernel_gradient(x, g, kernel.shape[:2]), of_bias


def _kernel_gradient(x: Array, g: Array, size: tuple[int, ...]) -> Array:
    """Sums x g over all images and pixels, for each shift of one against the other.

    That is a convolution whose channels are the images, and whose images are the channels of x, or
    those of g: XLA's own gradient takes x. Both are copied for it with the images innermost of one
    and the channels innermost of the other. The first copy costs several times as much as the
    second, so it is of whichever is the narrower.
    """
    pad = [(side // 2, side // 2) for side in size]
    if x.shape[-1] <= g.shape[-1]:
        return lax.conv_general_dilated(x, g, (1, 1), pad, dimension_numbers=OF_X)
    shifts = lax.conv_general_dilated(g, x, (1, 1), pad, dimension_numbers=OF_G)
    return shifts[::-1, ::-1]  # where g moves to the right, x moves to the left


_conv_on_cpu.defvjp(_conv_forward, _conv_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool_on_cpu(x: Array, size: int) -> Array:
    # Not a maximum over a reshaped x, which XLA computes again wherever the result is read.
    window = (1, size, size, 1)
    return lax.reduce_window(x, jnp.array(-jnp.inf, x.dtype), lax.max, window, window, "VALID")


def _max_pool_forward(x: Array, size: int) -> tuple[Array, UInt8[Array, "b i j c"]]:
    b, h, w, c = x.shape
    windows = x.reshape(b, h // size, size, w // size, size, c)
    best, winner = windows[:, :, 0, :, 0], jnp.zeros((b, h // size, w // size, c), jnp.uint8)
    for place in range(1, size * size):
        value = windows[:, :, place // size, :, place % size]
        winner = jnp.where(value > best, jnp.uint8(place), winner)
        best = jnp.maximum(best, value)
    return _max_pool_on_cpu(x, size), winner  # a byte an output is all that is kept


def _max_pool_backward(size: int, winner: Array, g: Array) -> tuple[Array]:
    b, h, w, c = g.shape
    places = jnp.arange(size * size, dtype=jnp.uint8).reshape(1, 1, size, 1, size, 1)
    chosen = winner[:, :, None, :, None] == places
    spread = jnp.where(chosen, g[:, :, None, :, None], 0)
    return (spread.reshape(b, h * size, w * size, c),)


_max_pool_on_cpu.defvjp(_max_pool_forward, _max_pool_backward)
