"""What a U-Net is made of: residual blocks on pixels, which conditions steer, and attention.

Conditions are what a network is told beside the image: a vector (of the time, of a label), which
scales and shifts features everywhere, and a text, whose words scale and shift them where they
concern a pixel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jaxdl.layers.attention import Attention
from jaxdl.layers.conv import Conv
from jaxdl.layers.dense import Dense
from jaxdl.layers.dropout import Dropout
from jaxdl.layers.norm import GroupNorm


class Text(NamedTuple):
    """Sentences: each word by itself, and as it is to be read where it stands.

    A network that reads makes both; whoever has but one vector a word gives it twice.
    """

    words: Float[Array, "b s e"]  # what is said
    read: Float[Array, "b s e"]  # by which pixels tell whom it concerns
    seen: Bool[Array, "b s"]  # true where there is a word


class Conditions(NamedTuple):
    """What is known of each image."""

    vector: Float[Array, "b d"]
    text: Text | None = None


class WordFiLM(nn.Module):
    """Scale and offset of each pixel's features, by the words that concern it.

        gate = sigmoid(q . r / sqrt(e))    q of the pixel, r the word as it was read
        film = sum over words of gate W w  w the word by itself

    This is attention with a sigmoid for the softmax (Ramapuram et al. 2024, arXiv:2409.04431), and
    "feature-wise linear modulation" (Perez et al. 2018, arXiv:1709.07871) that is a pixel's own.
    Words do not compete, so that a pixel may heed several or none. At first every gate is half
    open and each pixel is told half the sum of all words, which grows with the root of their
    number: it is meant for captions, not for pages. Where each word belongs is learnt from there.
    """

    features: int
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], text: Text) -> Float[Array, "b h w film"]:
        """Computes scales, 0 for none, and offsets (film = 2 features); gates are sown."""
        b, h, w, c = x.shape
        e = text.read.shape[-1]
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        ask = Dense(e, kernel_init=nn.initializers.zeros, name="query", **dtypes)
        said = Dense(2 * self.features, use_bias=False, name="value", **dtypes)(text.words)
        scores = ask(x.reshape(b, h * w, c)) @ text.read.swapaxes(1, 2) / e**0.5
        gates = jnp.where(text.seen[:, None], nn.sigmoid(scores.astype(jnp.float32)), 0)
        self.sow("intermediates", "gates", gates)
        return (gates.astype(said.dtype) @ said).reshape(b, h, w, -1)


class FiLMBlock(nn.Module):
    """Two convolutions beside a shortcut, steered by a vector, and by a text where there is one.

        y <- conv(silu(norm(x)))
        x <- shortcut(x) + conv(silu(norm(y) (1 + scale) + offset))

    Scale and offset are linear in the vector (Dhariwal and Nichol 2021, section 3.1, "adaptive
    group normalisation", arXiv:2105.05233); those of `WordFiLM` follow. The last convolution starts
    at zero, and the block as its shortcut.
    """

    features: int
    groups: int = 8
    dropout: float = 0.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        vector: Float[Array, "b d"],
        text: Text | None = None,
        *,
        train: bool,
    ) -> Float[Array, "b h w o"]:
        """Computes the block; a 1x1 convolution is the shortcut where the width changes."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm: dict[str, Any] = {"groups": self.groups, "param_dtype": self.param_dtype}
        film = nn.Dense(2 * self.features, name="film", **dtypes)(vector)
        pixels = GroupNorm(name="norm1", silu=True, **norm)(x)
        y = Conv(self.features, name="conv1", **dtypes)(pixels)
        y = GroupNorm(name="norm2", silu=text is None, **norm)(y, film)
        if text is not None:
            told = WordFiLM(self.features, name="words", **dtypes)(pixels, text)
            scale, offset = jnp.split(told.astype(jnp.float32), 2, axis=-1)
            y = nn.silu(y.astype(jnp.float32) * (1 + scale) + offset).astype(y.dtype)
        y = Dropout(self.dropout)(y, train=train)
        y = Conv(self.features, kernel_init=nn.initializers.zeros, name="conv2", **dtypes)(y)
        if x.shape[-1] != self.features:
            x = Conv(self.features, size=1, name="shortcut", **dtypes)(x)
        return x + y


class PixelAttention(nn.Module):
    """Attention from the pixels to each other, beside a path past it.

    What it adds starts at zero. The weights are sown, see `jaxdl.layers.attention.Attention`.
    """

    heads: int
    groups: int = 8
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Lets every pixel attend to all."""
        b, h, w, c = x.shape
        y = GroupNorm(self.groups, param_dtype=self.param_dtype, name="norm")(x).reshape(
            b, h * w, c
        )
        attention = Attention(
            c, self.heads, out_kernel_init=nn.initializers.zeros, dtype=self.dtype,
            param_dtype=self.param_dtype, name="attention",
        )  # fmt: skip
        return x + attention(y, attention.remember(y), mask=None).reshape(x.shape)


class ImageBlock(nn.Module):
    """A residual block and, where it attends, the words of a text in it, and attention after it."""

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
        x = residual(x, given.vector, given.text if self.attends else None, train=train)
        if self.attends:
            x = PixelAttention(self.heads, name="pixels", **shared)(x)
        return x
