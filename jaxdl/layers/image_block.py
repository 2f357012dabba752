"""What a U-Net is made of: residual blocks on pixels, which conditions steer, and attention.

Conditions are what a network is told beside the image: a vector (of the time, of a label), which
scales and shifts features, and a text, which is attended to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jaxdl.layers.attention import Attention
from jaxdl.layers.conv import Conv
from jaxdl.layers.dropout import Dropout
from jaxdl.layers.norm import GroupNorm


class Conditions(NamedTuple):
    """What is known of each image."""

    vector: Float[Array, "b d"]
    text: Float[Array, "b s e"] | None = None
    text_mask: Bool[Array, "b s"] | None = None  # true where there is text; one at least in a row


class FiLMBlock(nn.Module):
    """Two convolutions beside a shortcut, steered by a vector.

        x <- shortcut(x) + conv(silu(norm(conv(silu(norm(x)))) (1 + scale) + offset))

    Scale and offset are linear in the vector (Dhariwal and Nichol 2021, section 3.1, "adaptive
    group normalisation", arXiv:2105.05233). The last convolution starts at zero, and the block as
    its shortcut.
    """

    features: int
    groups: int = 8
    dropout: float = 0.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], vector: Float[Array, "b d"], *, train: bool
    ) -> Float[Array, "b h w o"]:
        """Computes the block; a 1x1 convolution is the shortcut where the width changes."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm: dict[str, Any] = {
            "groups": self.groups, "silu": True, "param_dtype": self.param_dtype
        }  # fmt: skip
        film = nn.Dense(2 * self.features, name="film", **dtypes)(vector)
        y = GroupNorm(name="norm1", **norm)(x)
        y = Conv(self.features, name="conv1", **dtypes)(y)
        y = GroupNorm(name="norm2", **norm)(y, film)
        y = Dropout(self.dropout)(y, train=train)
        y = Conv(self.features, kernel_init=nn.initializers.zeros, name="conv2", **dtypes)(y)
        if x.shape[-1] != self.features:
            x = Conv(self.features, size=1, name="shortcut", **dtypes)(x)
        return x + y


class PixelAttention(nn.Module):
    """Attention from the pixels to each other, or to a text, beside a path past it.

    What it adds starts at zero. The weights are sown, see `jaxdl.layers.attention.Attention`.
    """

    heads: int
    groups: int = 8
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        text: Float[Array, "b s e"] | None = None,
        text_mask: Bool[Array, "b s"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Attends to the text where there is one, as far as the mask lets it."""
        b, h, w, c = x.shape
        y = GroupNorm(self.groups, param_dtype=self.param_dtype, name="norm")(x).reshape(
            b, h * w, c
        )
        memory = y if text is None else text
        seen = jnp.ones(memory.shape[:2], bool) if text_mask is None else text_mask
        attention = Attention(
            c, self.heads, out_kernel_init=nn.initializers.zeros, dtype=self.dtype,
            param_dtype=self.param_dtype, name="attention",
        )  # fmt: skip
        mask = jnp.broadcast_to(seen[:, None], (b, h * w, seen.shape[1]))
        return x + attention(y, attention.remember(memory), mask).reshape(x.shape)


class ImageBlock(nn.Module):
    """A residual block and, where it attends, attention: to the pixels, then to the text."""

    features: int
    attends: bool = False
    heads: int = 4
    groups: int = 8
    dropout: float = 0.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], given: Conditions, *, train: bool
    ) -> Float[Array, "b h w o"]:
        """Computes the block."""
        shared: dict[str, Any] = {
            "groups": self.groups, "dtype": self.dtype, "param_dtype": self.param_dtype
        }  # fmt: skip
        residual = FiLMBlock(self.features, dropout=self.dropout, name="residual", **shared)
        x = residual(x, given.vector, train=train)
        if self.attends:
            x = PixelAttention(self.heads, name="pixels", **shared)(x)
            if given.text is not None:
                across = PixelAttention(self.heads, name="text", **shared)
                x = across(x, given.text, given.text_mask)
        return x
