"""A network that takes noise off an image in the light of a sentence.

A transformer reads the sentence (Vaswani et al. 2017, arXiv:1706.03762), and the pixels of a U-Net
heed its words: by what the transformer made of a word each pixel tells whether it is concerned,
and if so it is the word itself that steers it (`jaxdl.layers.image_block.WordFiLM`).
Both networks are trained together, from nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxdl.layers.attention import same_segment
from jaxdl.layers.block import Block, Stack, make_norm
from jaxdl.layers.dropout import Dropout
from jaxdl.layers.embed import Embed
from jaxdl.layers.image_block import Text
from jaxdl.models.unet import UNet


class TextEncoder(nn.Module):
    """A stack of blocks in which every word sees its whole sentence; positions are rotary.

    Words start at full size, N(0, 1), for they are handed on as they are, too.
    """

    vocabulary: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    dropout: float = 0.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "b s"], *, train: bool) -> Text:
        """Returns each word, what it makes of it, and where there is one: 0 is padding.

        The same tokens give the same, however many zeros follow. While training it draws from the
        rng "dropout".
        """
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        init = nn.initializers.normal(1.0)
        embed = Embed(self.vocabulary, self.width, embedding_init=init, name="embed", **dtypes)
        block = partial(
            Block, self.width, self.heads, 4 * self.width, activation="gelu", rotary=True,
            dropout=self.dropout, **dtypes,
        )  # fmt: skip
        stack = Stack(self.layers, block, partial(make_norm, "layer", **dtypes), name="stack")
        seen = tokens > 0
        segments = seen.astype(jnp.int32)
        words = Dropout(self.dropout)(embed(tokens), train=train)
        positions = jnp.arange(tokens.shape[1])[None]
        mask = same_segment(segments, segments)
        read, _ = stack(words, mask, positions=positions, train=train)
        return Text(words, read, seen)


class TextToImage(nn.Module):
    """A U-Net whose pixels heed the words of a sentence, at the levels that have attention.

    A row of zeros is no text, and steers nothing. That is the unconditional network, which guidance
    needs (Ho and Salimans 2022, arXiv:2207.12598).

    Time is as in `jaxdl.models.UNet`.
    """

    channels: int
    vocabulary: int
    text_width: int = 64
    text_layers: int = 2
    width: int = 64  # from here on as in `UNet`; heads and dropout are the encoder's too
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[bool, ...] = (False, False, True)
    heads: int = 4
    patch: int = 1
    dropout: float = 0.0
    remat: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the two networks."""
        shared: dict[str, Any] = {
            "heads": self.heads, "dropout": self.dropout, "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }  # fmt: skip
        self.encoder = TextEncoder(self.vocabulary, self.text_width, self.text_layers, **shared)
        self.unet = UNet(
            self.channels, width=self.width, multipliers=self.multipliers, blocks=self.blocks,
            attention=self.attention, text_width=self.text_width, patch=self.patch,
            positions=True, remat=self.remat, **shared,
        )  # fmt: skip

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, " b"],
        tokens: Int[Array, "b s"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "b h w c"]:
        """Computes an image for each, float32; without tokens, as without text.

        Height and width must be divisible by patch * 2 ** (len(multipliers) - 1), ValueError
        otherwise. While training it draws from the rng "dropout".
        """
        text = None if tokens is None else self.encoder(tokens, train=train)
        return self.unet(x, time, None, text, train=train)

    @nn.nowrap
    def absent(self, tokens: Int[Array, "b s"]) -> Int[Array, "b s"]:
        """Returns what stands for no text in as many rows."""
        return jnp.zeros_like(tokens)
