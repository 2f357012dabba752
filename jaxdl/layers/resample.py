"""Half and double the size of images, channels last: the plain forms, to convolve after.

Also patches: squares of pixels as one pixel of more channels, which loses nothing.

Convolutions with a stride, and transposed ones, are slow on CPU, and the latter leave checkerboards
(Odena et al. 2016, doi:10.23915/distill.00003).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.product import written


def halve(x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
    """Averages each 2x2 block of pixels. Raises ValueError for a height or a width that is odd."""
    _, h, w, _ = x.shape
    if h % 2 or w % 2:
        raise ValueError(f"{h}x{w} pixels do not halve evenly")
    return _halve(x)


# Each is the other's gradient, but for a factor of 4; XLA's own, of slices and of broadcasts, are
# slower on CPU.
@jax.custom_vjp
def _halve(x: Array) -> Array:
    rows = x[:, ::2] + x[:, 1::2]
    return written((rows[:, :, ::2] + rows[:, :, 1::2]) / 4)


@jax.custom_vjp
def double(x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
    """Makes each pixel a 2x2 block of its like: nearest-neighbour interpolation."""
    b, h, w, c = x.shape
    blocks = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
    return blocks.reshape(b, 2 * h, 2 * w, c)


_halve.defvjp(lambda x: (_halve(x), None), lambda _, g: (double(g) / 4,))
double.defvjp(lambda x: (double(x), None), lambda _, g: (_halve(g) * 4,))


def fold(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b i j o"]:
    """Makes each patch x patch square of pixels one pixel, with all their channels."""
    b, h, w, c = x.shape
    squares = x.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3)
    return squares.reshape(b, h // patch, w // patch, patch * patch * c)


def unfold(x: Float[Array, "b i j o"], patch: int) -> Float[Array, "b h w c"]:
    """Spreads each pixel's channels over a patch x patch square: the inverse of `fold`."""
    b, i, j, o = x.shape
    squares = x.reshape(b, i, j, patch, patch, o // patch**2).swapaxes(2, 3)
    return squares.reshape(b, i * patch, j * patch, o // patch**2)
