"""Inception, the network whose features the Frechet Inception distance is measured in."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Size = int | tuple[int, int]  # of a kernel: both sides, or height and width


class Inception(nn.Module):
    """InceptionV3 (Szegedy et al. 2016, arXiv:1512.00567) up to its 2048 pooled features.

    As TensorFlow's graph of 2015-12-05 computes it, by which the distance is defined (Heusel et
    al. 2017, arXiv:1706.08500), and which differs from the paper and from torchvision: averages
    count no padding, and the last block takes a maximum instead. Each convolution has a bias in
    place of its batch normalisation, whose statistics are constants here: the network is not for
    training. Layers carry the names of the graph, as `jaxdl.interop.torch_inception` reads them.
    """

    size: tuple[int, int] = (299, 299)  # that images are resized to, at least 75 a side

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b 2048"]:
        """Computes the features of images in [0, 1], grey or in colour, of any size.

        Raises ValueError for other than 1 or 3 channels.
        """
        x = network_input(images, self.size)
        x = unit(x, "Conv2d_1a_3x3", 32, 3, stride=2, padding="VALID")
        x = unit(x, "Conv2d_2a_3x3", 32, 3, padding="VALID")
        x = unit(x, "Conv2d_2b_3x3", 64, 3)
        x = halving_max(x)
        x = unit(x, "Conv2d_3b_1x1", 80, 1)
        x = unit(x, "Conv2d_4a_3x3", 192, 3, padding="VALID")
        x = halving_max(x)
        for place, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = BlockA(pooled, name=f"Mixed_{place}")(x)
        x = BlockB(name="Mixed_6a")(x)
        for place, narrow in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = BlockC(narrow, name=f"Mixed_{place}")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(name="Mixed_7b")(x)
        x = BlockE(maximum=True, name="Mixed_7c")(x)
        return x.mean((1, 2))


class BlockA(nn.Module):
    """Branches of 1x1, 5x5 and twice 3x3, and an average, side by side."""

    pooled: int  # channels of the average's branch

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        """Computes the block: 224 channels and the average's."""
        branches = [
            unit(x, "branch1x1", 64),
            chain(x, "branch5x5", (48, 1), (64, 5)),
            chain(x, "branch3x3dbl", (64, 1), (96, 3), (96, 3)),
            unit(average(x), "branch_pool", self.pooled),
        ]
        return jnp.concatenate(branches, axis=-1)


class BlockB(nn.Module):
    """Halves the image by branches of one and of three convolutions, and by a maximum."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j o"]:
        """Computes the block: 480 channels and those of x."""
        branches = [
            unit(x, "branch3x3", 384, 3, stride=2, padding="VALID"),
            chain(x, "branch3x3dbl", (64, 1), (96, 3), (96, 3), halve=True),
            halving_max(x),
        ]
        return jnp.concatenate(branches, axis=-1)


class BlockC(nn.Module):
    """Branches of 7x7 convolutions, each a row and a column, and an average, side by side."""

    narrow: int  # channels within the branches

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        """Computes the block: 768 channels."""
        row, column = (self.narrow, (1, 7)), (self.narrow, (7, 1))
        start = self.narrow, 1
        branches = [
            unit(x, "branch1x1", 192),
            chain(x, "branch7x7", start, row, (192, (7, 1))),
            chain(x, "branch7x7dbl", start, column, row, column, (192, (1, 7))),
            unit(average(x), "branch_pool", 192),
        ]
        return jnp.concatenate(branches, axis=-1)


class BlockD(nn.Module):
    """Halves the image by branches of 3x3 and of 7x7 convolutions, and by a maximum."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j o"]:
        """Computes the block: 512 channels and those of x."""
        row, column = (192, (1, 7)), (192, (7, 1))
        branches = [
            chain(x, "branch3x3", (192, 1), (320, 3), halve=True),
            chain(x, "branch7x7x3", (192, 1), row, column, (192, 3), halve=True),
            halving_max(x),
        ]
        return jnp.concatenate(branches, axis=-1)


class BlockE(nn.Module):
    """Branches that end in a row beside a column, and one that pools, side by side."""

    maximum: bool = False  # pools by a maximum, else by an average

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        """Computes the block: 2048 channels."""
        pooled = nn.max_pool(x, (3, 3), padding="SAME") if self.maximum else average(x)
        short = unit(x, "branch3x3_1", 384)
        long = chain(x, "branch3x3dbl", (448, 1), (384, 3))
        branches = [
            unit(x, "branch1x1", 320),
            unit(short, "branch3x3_2a", 384, (1, 3)),
            unit(short, "branch3x3_2b", 384, (3, 1)),
            unit(long, "branch3x3dbl_3a", 384, (1, 3)),
            unit(long, "branch3x3dbl_3b", 384, (3, 1)),
            unit(pooled, "branch_pool", 192),
        ]
        return jnp.concatenate(branches, axis=-1)


def unit(
    x: Float[Array, "b h w c"], name: str, features: int, size: Size = 1, *,
    stride: int = 1, padding: str = "SAME",
) -> Float[Array, "b i j o"]:  # fmt: skip
    """Convolves and rectifies; within a module's `__call__`."""
    sides = (size, size) if isinstance(size, int) else size
    # A GPU would round to fewer bits, and the distance be another than on a CPU.
    exact = jax.lax.Precision.HIGHEST
    return nn.relu(nn.Conv(features, sides, stride, padding, precision=exact, name=name)(x))


def chain(
    x: Float[Array, "b h w c"], name: str, *units: tuple[int, Size], halve: bool = False
) -> Float[Array, "b i j o"]:
    """Applies units of (features, size), named name_1, name_2 and so on; the last may halve."""
    for number, (features, size) in enumerate(units, start=1):
        last = {"stride": 2, "padding": "VALID"} if halve and number == len(units) else {}
        x = unit(x, f"{name}_{number}", features, size, **last)
    return x


halving_max = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))
average = partial(nn.avg_pool, window_shape=(3, 3), padding="SAME", count_include_pad=False)


def network_input(
    images: Float[Array, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b height width 3"]:
    """Brings images in [0, 1] to three channels, to a size in pixels, and to [-1, 1].

    Bilinear without antialiasing, also where images are made smaller: pixels in between are
    skipped, as by `torch.nn.functional.interpolate`. Raises ValueError for other than 1 or 3
    channels.
    """
    b, _, _, c = images.shape
    if c not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels, got {c}")
    x = jax.image.resize(images, (b, *size, c), "bilinear", antialias=False)
    return 2 * jnp.broadcast_to(x, (b, *size, 3)) - 1
