"""A U-Net: an image goes in, and one of the same size comes out, in the light of conditions.

Ronneberger et al. 2015 (arXiv:1505.04597) in the form that denoises (Ho et al. 2020, 2006.11239;
Nichol and Dhariwal 2021, 2102.09672): residual blocks, attention where images are small, and a
vector of time and label that steers every block. It knows nothing of any diffusion process.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxdl.layers.conv import Conv
from jaxdl.layers.embed import Embed, sinusoids
from jaxdl.layers.image_block import Conditions, ImageBlock, Text
from jaxdl.layers.norm import GroupNorm
from jaxdl.layers.resample import double, fold, halve, unfold
from jaxdl.models.cnn import check_divisible


class UNet(nn.Module):
    """A U-Net for images of any number of channels, conditioned on time, a label, and a text.

    On the way down `blocks` blocks a level, each of which pushes its output on a stack, and half
    the size between levels; on the way up as many, each of which pops its counterpart, and double
    the size between. The output starts at zero, as does what each block adds.

    **Time** is one number a row, of any meaning. It is told by sinusoids of `time_scale` times it,
    whose periods run from 2 pi to 2 pi 10,000: differences of about 1 are told apart over some ten
    thousand. As it is that suits the numbers of diffusion steps, 0 to 1000, and ln(sigma) / 4, as
    Karras et al. (2206.00364) have it, or a log-SNR; for time in [0, 1] take a scale of 1000.

    **Labels** are 0 to classes - 1, and `classes` for none, which is what guidance needs
    (arXiv:2207.12598). **Text** is of any length, zero included, and steers the levels that have
    attention, see `jaxdl.layers.image_block.WordFiLM`. To have no label, or no text, for the whole
    batch is to leave it out.

    **Patches**: where `patch` is above 1, squares of so many pixels a side are the network's
    pixels, and what is within them its channels (Hoogeboom et al. 2023, section 2.4, 2301.11093).
    The finest details are then drawn by the last convolution alone, at a fraction of the cost.

    **Positions**: all that tells a pixel where it lies is the zeros that convolutions find beyond
    the border. Where a text speaks of places it learns them sooner from sinusoids, of its row in
    half of the channels and of its column in the others.
    """

    channels: int
    width: int = 64  # of the first level
    multipliers: tuple[int, ...] = (1, 2, 2)  # of the width, one a level
    blocks: int = 2  # a level, on either way
    attention: tuple[bool, ...] = (False, False, True)  # by level; the middle is as the last one
    heads: int = 4
    classes: int | None = None
    text_width: int | None = None  # of the text's words
    time_scale: float = 1.0
    patch: int = 1  # pixels a side
    positions: bool = False  # tell each pixel where it lies
    groups: int = 8  # of each normalisation, or as many as divide the width
    dropout: float = 0.0  # within blocks
    remat: bool = False  # keep each block's input alone, and compute the rest again for gradients
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the layers."""
        levels = len(self.multipliers)
        if len(self.attention) != levels:
            raise ValueError(
                f"{levels} multipliers, but attention for {len(self.attention)} levels"
            )
        if self.text_width is not None and not any(self.attention):
            raise ValueError("a text steers levels with attention, and none has any")
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block = partial(
            ImageBlock, heads=self.heads, groups=self.groups, dropout=self.dropout, **dtypes
        )
        widths = [self.width * multiplier for multiplier in self.multipliers]
        self.conditions = ConditionEmbedding(
            4 * self.width, self.width, self.classes, self.text_width, self.time_scale, **dtypes
        )
        self.stem = Conv(self.width, **dtypes)
        self.down, self.up = (
            [[block(w, attends) for _ in range(self.blocks)]
             for w, attends in zip(widths, self.attention, strict=True)]
            for _ in range(2)
        )  # fmt: skip
        self.halved, self.doubled = ([Conv(w, **dtypes) for w in widths[:-1]] for _ in range(2))
        self.middle = [block(widths[-1], self.attention[-1]), block(widths[-1])]
        self.norm = GroupNorm(self.groups, silu=True, param_dtype=self.param_dtype)
        self.out = Conv(self.channels * self.patch**2, kernel_init=nn.initializers.zeros, **dtypes)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, " b"],
        labels: Int[Array, " b"] | None = None,
        text: Text | None = None,
        *,
        train: bool,
    ) -> Float[Array, "b h w c"]:
        """Computes an image for each, float32.

        Height and width must be divisible by patch * 2 ** (len(multipliers) - 1). ValueError
        otherwise, and for conditions that the network has not been made for. While training it
        draws from the rng "dropout".
        """
        check_divisible(x, self.patch * 2 ** (len(self.multipliers) - 1))
        given = self.conditions(time, labels, text)

        def run(block: ImageBlock, x: Array) -> Array:
            return block(x, given, train=train)

        through = nn.remat(run) if self.remat else run
        x, stack = self.stem(fold(x, self.patch)), []
        x = x + lattice(*x.shape[1:]).astype(x.dtype) if self.positions else x
        for level, blocks in enumerate(self.down):
            for block in blocks:
                x = through(block, x)
                stack.append(x)
            if level + 1 < len(self.down):
                x = self.halved[level](halve(x))
        for block in self.middle:
            x = through(block, x)
        for level, blocks in reversed(list(enumerate(self.up))):
            for block in blocks:
                x = through(block, jnp.concatenate([x, stack.pop()], axis=-1))
            if level:
                x = self.doubled[level - 1](double(x))
        return unfold(self.out(self.norm(x)), self.patch).astype(jnp.float32)

    @nn.nowrap
    def absent(self, labels: Int[Array, " b"]) -> Int[Array, " b"] | None:
        """Returns what stands for no label in as many rows; None where there are no classes."""
        return None if self.classes is None else jnp.full_like(labels, self.classes)


def lattice(h: int, w: int, c: int) -> Float[Array, "1 h w c"]:
    """Tells each pixel its row and its column by sinusoids, see `jaxdl.layers.embed.sinusoids`."""
    rows, columns = (sinusoids(jnp.arange(n), c // 4 * 2) for n in (h, w))
    shape = h, w, c // 4 * 2
    both = [jnp.broadcast_to(part, shape) for part in (rows[:, None], columns[None])]
    told = jnp.concatenate(both, axis=-1)
    return jnp.pad(told, ((0, 0), (0, 0), (0, c - told.shape[-1])))[None]


class ConditionEmbedding(nn.Module):
    """Makes one vector of time and label, and has a text, of no words if need be."""

    features: int
    time_features: int
    classes: int | None
    text_width: int | None
    time_scale: float
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        time: Float[Array, " b"],
        labels: Int[Array, " b"] | None,
        text: Text | None,
    ) -> Conditions:
        """Embeds what there is; a label or a text that is not there, as its absence."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        waves = sinusoids(time.astype(jnp.float32) * self.time_scale, self.time_features)
        vector = nn.Dense(self.features, name="time1", **dtypes)(waves)
        vector = nn.Dense(self.features, name="time2", **dtypes)(nn.silu(vector))
        if self.classes is not None:
            labels = jnp.full(len(time), self.classes) if labels is None else labels
            init = nn.initializers.normal(1.0)
            embed = Embed(
                self.classes + 1, self.features, embedding_init=init, name="label", **dtypes
            )
            vector += embed(labels)
        elif labels is not None:
            raise ValueError("a U-Net without classes was given labels")
        if self.text_width is None and text is not None:
            raise ValueError("a U-Net without text_width was given a text")
        if self.text_width is not None and text is None:
            none = jnp.zeros((len(time), 0, self.text_width), vector.dtype)
            text = Text(none, none, jnp.zeros((len(time), 0), bool))
        if text is not None and {text.words.shape[-1], text.read.shape[-1]} != {self.text_width}:
            raise ValueError(
                f"words of {text.words.shape[-1]} and {text.read.shape[-1]} for a U-Net with"
                f" text_width {self.text_width}"
            )
        return Conditions(nn.silu(vector), text)
