"""Convolutional networks on images, channels last."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdl.layers import Conv, Dropout, max_pool


class ReferenceCNN(nn.Module):
    """The reference CNN: 3x3 convolutions with pooling after all but the first, then two dense.

    On 48x48x3 images with 10 classes it has 9,536,074 parameters. Its layers carry the names
    `conv1`, `conv2`, ..., `fc1`, `fc2`, which `jaxdl.interop.torch` relies on.
    """

    classes: int
    widths: tuple[int, ...] = (32, 64, 128)
    hidden: int = 512
    dropout: float = 0.5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b v"]:
        """Computes logits, float32.

        Height and width must be divisible by 2 ** (len(widths) - 1); ValueError otherwise. While
        training it draws from the rng "dropout".
        """
        check_divisible(x, 2 ** (len(self.widths) - 1))
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i, width in enumerate(self.widths, start=1):
            x = nn.relu(Conv(width, name=f"conv{i}", **dtypes)(x))
            if i > 1:
                x = max_pool(x, 2)
        x = x.reshape(x.shape[0], -1)
        x = Dropout(self.dropout)(x, train=train)
        x = nn.Dense(self.hidden, kernel_init=nn.initializers.he_normal(), name="fc1", **dtypes)(x)
        x = Dropout(self.dropout)(nn.relu(x), train=train)
        return nn.Dense(self.classes, name="fc2", **dtypes)(x).astype(jnp.float32)


class ResidualBlock(nn.Module):
    """Two normalised convolutions beside a shortcut (He et al. 2016, arXiv:1603.05027).

        x <- shortcut(x) + conv(relu(norm(conv(relu(norm(x))))))

    The last normalisation of a block would start at zero in a batch-normalised network; here the
    last *convolution* does, so that every block starts as its shortcut.
    """

    features: int
    groups: int
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        """Computes the block; a 1x1 convolution is the shortcut where the width changes."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = nn.relu(group_norm(x, self.groups, name="norm1", **dtypes))
        if x.shape[-1] != self.features:
            x = Conv(self.features, size=1, use_bias=False, name="shortcut", **dtypes)(y)
        y = Conv(self.features, use_bias=False, name="conv1", **dtypes)(y)
        y = nn.relu(group_norm(y, self.groups, name="norm2", **dtypes))
        zeros = nn.initializers.zeros
        return x + Conv(self.features, kernel_init=zeros, name="conv2", **dtypes)(y)


class ResidualCNN(nn.Module):
    """A residual network with group normalisation (Wu and He 2018, arXiv:1803.08494).

    Group normalisation looks at one example at a time: it has no running statistics, and is the
    same at any batch size, on one device and on many, in training and in evaluation.
    """

    classes: int
    widths: tuple[int, ...] = (32, 64, 128)
    blocks: int = 1  # a stage; stages are joined by 2x2 max-pools
    groups: int = 8  # of each normalisation, or as many as divide the width
    dropout: float = 0.0  # before the last layer
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b v"]:
        """Computes logits, float32.

        Height and width must be divisible by 2 ** (len(widths) - 1); ValueError otherwise. While
        training with dropout above 0 it draws from the rng "dropout".
        """
        check_divisible(x, 2 ** (len(self.widths) - 1))
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Conv(self.widths[0], use_bias=False, name="stem", **dtypes)(x)
        for stage, width in enumerate(self.widths):
            if stage:
                x = max_pool(x, 2)
            for block in range(self.blocks):
                name = f"stage{stage + 1}_block{block + 1}"
                x = ResidualBlock(width, self.groups, name=name, **dtypes)(x)
        x = nn.relu(group_norm(x, self.groups, name="norm", **dtypes))
        x = Dropout(self.dropout)(x.mean((1, 2)), train=train)
        return nn.Dense(self.classes, name="fc", **dtypes)(x).astype(jnp.float32)


def group_norm(x: Float[Array, "b h w c"], groups: int, **kwargs: Any) -> Float[Array, "b h w c"]:
    """Normalises groups of channels, gcd(groups, c) of them; within a module's `__call__`."""
    return nn.GroupNorm(num_groups=math.gcd(groups, x.shape[-1]), **kwargs)(x)


def check_divisible(x: Float[Array, "b h w c"], factor: int) -> None:
    """Raises ValueError where pooling would drop a row or a column of the images."""
    _, height, width, _ = x.shape
    if height % factor or width % factor:
        raise ValueError(
            f"images of {height}x{width} do not halve evenly: both sides must be multiples of"
            f" {factor} (--image-size)"
        )
