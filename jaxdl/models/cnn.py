"""Convolutional networks on images, channels last."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdl.layers import Conv, Dropout, max_pool

Norm = Literal["group", "batch"]


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
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
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
    norm: Callable[[Array, str], Array]  # (x, name of its layer) -> x normalised
    use_bias: bool = True  # of the last convolution: a batch normalisation takes it off again
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        """Computes the block; a 1x1 convolution is the shortcut where the width changes."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = nn.relu(self.norm(x, "norm1"))
        if x.shape[-1] != self.features:
            x = Conv(self.features, size=1, use_bias=False, name="shortcut", **dtypes)(y)
        y = Conv(self.features, use_bias=False, name="conv1", **dtypes)(y)
        y = nn.relu(self.norm(y, "norm2"))
        zeros = nn.initializers.zeros
        last = {"use_bias": self.use_bias, "kernel_init": zeros}
        return x + Conv(self.features, name="conv2", **last, **dtypes)(y)


class ResidualCNN(nn.Module):
    """A residual network with group or batch normalisation.

    Group normalisation (Wu and He 2018, arXiv:1803.08494) looks at one example at a time: it has
    no running statistics, and is the same at any batch size, on one device and on many, in
    training and in evaluation.

    Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167) ties the examples of a batch
    together, and keeps running statistics, `batch_stats`, for evaluation. They are of the whole
    batch, wherever its rows lie: under jit by themselves, under pmap and shard_map over
    `axis_name`. With gradient accumulation they are of a microbatch, one after the other.
    """

    classes: int
    widths: tuple[int, ...] = (32, 64, 128)
    blocks: int = 1  # a stage; stages are joined by 2x2 max-pools
    norm: Norm = "group"
    groups: int = 8  # of each group normalisation, or as many as divide the width
    dropout: float = 0.0  # before the last layer
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None  # the mapped axis, under pmap and shard_map, of a batch

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b v"]:
        """Computes logits, float32.

        Height and width must be divisible by 2 ** (len(widths) - 1); ValueError otherwise. While
        training with dropout above 0 it draws from the rng "dropout", and with batch
        normalisation it changes the collection "batch_stats".
        """
        check_divisible(x, 2 ** (len(self.widths) - 1))
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.norm == "batch":
            options = {"use_running_average": not train, "axis_name": self.axis_name}
            norm = partial(batch_norm, **options, **dtypes)
        elif self.norm == "group":
            norm = partial(group_norm, groups=self.groups, **dtypes)
        else:
            raise ValueError(
                f"no normalisation {self.norm!r}; there are {', '.join(get_args(Norm))}"
            )
        x = Conv(self.widths[0], use_bias=False, name="stem", **dtypes)(x)
        for stage, width in enumerate(self.widths):
            if stage:
                x = max_pool(x, 2)
            for block in range(self.blocks):
                name = f"stage{stage + 1}_block{block + 1}"
                x = ResidualBlock(width, norm, self.norm != "batch", name=name, **dtypes)(x)
        x = nn.relu(norm(x, "norm"))
        x = Dropout(self.dropout)(x.mean((1, 2)), train=train)
        return nn.Dense(self.classes, name="fc", **dtypes)(x).astype(jnp.float32)


def group_norm(
    x: Float[Array, "b h w c"], name: str, *, groups: int, **kwargs: Any
) -> Float[Array, "b h w c"]:
    """Normalises groups of channels, gcd(groups, c) of them; within a module's `__call__`."""
    return nn.GroupNorm(num_groups=math.gcd(groups, x.shape[-1]), name=name, **kwargs)(x)


def batch_norm(x: Float[Array, "b h w c"], name: str, **kwargs: Any) -> Float[Array, "b h w c"]:
    """Normalises each channel over the batch; within a module's `__call__`."""
    return nn.BatchNorm(momentum=0.9, name=name, **kwargs)(x)


def check_divisible(x: Float[Array, "b h w c"], factor: int) -> None:
    """Raises ValueError where pooling would drop a row or a column of the images."""
    _, height, width, _ = x.shape
    if height % factor or width % factor:
        raise ValueError(
            f"images of {height}x{width} do not halve evenly: both sides must be multiples of"
            f" {factor} (--image-size)"
        )
