"""What every experiment on images shares: where they come from, and what is done to them."""

from __future__ import annotations

import dataclasses
import difflib
import math
from pathlib import Path
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.data import ImageDataset, Source, digits, image_folder, tfds_images
from jaxdl.data import images as augment
from jaxdl.data.sources import Example
from jaxdl.errors import UserError
from jaxdl.keys import derive
from jaxdl.run.config import RunConfig, operational
from jaxdl.run.report import draw_images
from jaxdl.types import Array, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConfig(RunConfig):
    """Options of every experiment on images; the augmentations apply to training alone."""

    dataset: str = "digits"
    """digits (embedded), folder, or the name of a TFDS dataset, e.g. mnist."""
    folder: Path | None = None
    """For the dataset "folder": PATH/train/CLASS/*.png and PATH/test/CLASS/*.png."""
    data_dir: Path | None = operational(None)
    """Where TFDS keeps prepared datasets [default: ~/tensorflow_datasets]."""
    manual_dir: Path | None = operational(None)
    """Pre-downloaded files for TFDS, which checks them against its own checksums."""
    workers: int = operational(0)
    """Processes that read a dataset too large for memory."""

    image_size: int = 48
    """Height and width that images are resized to."""
    image_width: int | None = None
    """Their width, where it is not their height."""
    channels: Literal[1, 3] = 3
    """Grey is repeated for 3; colours are mixed to grey for 1."""
    mean: float = 0.1307
    """Subtracted from images in [0, 1]."""
    std: float = 0.3081
    """Divided by, after that."""
    rotation: float = 0.0
    """Rotate by up to this many degrees."""
    translate: float = 0.0
    """Shift by up to this share of the side."""
    scale: float = 0.0
    """Zoom by up to this share."""
    shear: float = 0.0
    """Shear by up to this many degrees."""
    brightness: float = 0.0
    """Change the brightness by up to this share."""
    contrast: float = 0.0
    """Change the contrast by up to this share."""
    flip: bool = False
    """Mirror half of the images."""
    crop_padding: int = 0
    """Pad by this many pixels and crop at random."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        super().__post_init__()
        reads = self.folder is None or self.dataset == "folder"
        self._require(reads, "folder", "needs --dataset folder beside it")
        self._require(self.workers >= 0, "workers", "must not be negative")
        self._require(self.image_size > 0, "image_size", "must be above 0")
        self._require(min(self.size) > 0, "image_width", "must be above 0")
        self._require(math.isfinite(self.mean), "mean", "must be finite")
        self._require(0 < self.std < math.inf, "std", "must be above 0, and finite")
        limits = {"rotation": 180, "translate": 1, "brightness": 1, "contrast": 1}
        limits["crop_padding"] = min(self.size)  # more leaves many a crop without a pixel
        for name, most in limits.items():
            self._require(0 <= getattr(self, name) <= most, name, f"must lie in [0, {most}]")
        for name, end in {"scale": 1, "shear": 90}.items():
            self._require(0 <= getattr(self, name) < end, name, f"must lie in [0, {end})")

    def _require_multiple(self, factor: int) -> None:
        """Refuses sides that do not halve evenly from level to level of a network."""
        for name, side in zip(("image_size", "image_width"), self.size, strict=True):
            what = f"must be a multiple of {factor} to halve evenly"
            self._require(side % factor == 0, name, what)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what the network takes."""
        return self.image_size, self.image_size if self.image_width is None else self.image_width

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of it."""
        return *self.size, self.channels

    @property
    def augments(self) -> bool:
        """Whether training changes images."""
        draws = "rotation", "translate", "scale", "shear", "brightness", "contrast"
        return any(getattr(self, name) for name in (*draws, "flip", "crop_padding"))


def load(config: ImageConfig) -> ImageDataset:
    """Opens the config's dataset."""
    if config.dataset == "digits":
        return digits()
    if config.dataset == "folder":
        if config.folder is None:
            raise UserError("--dataset folder needs --folder PATH, with train/CLASS/*.png in it")
        return image_folder(config.folder, size=config.size, channels=config.channels)
    places = {"data_dir": config.data_dir, "manual_dir": config.manual_dir}
    try:
        return tfds_images(config.dataset, **places, size=config.size)
    except UserError as error:  # it names the nearest datasets, but of TFDS's alone
        near = difflib.get_close_matches(config.dataset, ("digits", "folder"), n=1)
        if not near:
            raise
        raise UserError(f"{error} (beside TFDS's there is {near[0]})") from error


def prepare(config: ImageConfig, images: Array, key: Key | None) -> Array:
    """Brings uint8 images to what the network takes; augments them where there is a key."""
    x = augment.resize(augment.to_float(images), config.size)
    if key is not None:
        x = augmented(config, x, key)
    return augment.normalise(augment.to_channels(x, config.channels), config.mean, config.std)


def augmented(config: ImageConfig, x: Array, key: Key) -> Array:
    """Draws the config's augmentations of images in [0, 1], and applies them."""
    if config.translate or config.scale or config.shear:
        x = augment.affine(
            derive(key, "affine"), x, degrees=config.rotation, translate=config.translate,
            scale=(1 - config.scale, 1 + config.scale), shear=config.shear,
        )  # fmt: skip
    elif config.rotation:
        x = augment.rotate(derive(key, "rotate"), x, config.rotation)
    if config.brightness or config.contrast:
        jitter = {"brightness": config.brightness, "contrast": config.contrast}
        x = augment.jitter(derive(key, "jitter"), x, **jitter)
    if config.flip:
        x = augment.flip(derive(key, "flip"), x)
    if config.crop_padding:
        x = augment.pad_and_crop(derive(key, "crop"), x, config.crop_padding)
    return x


class Titled(Protocol):
    """A dataset that can say what an example shows."""

    @property
    def train(self) -> Source:
        """The examples to train on."""
        ...

    def title(self, example: Example) -> str:
        """Says what an example shows."""
        ...


def draw_inputs(config: ImageConfig, data: Titled, path: Path, *, columns: int = 8) -> None:
    """Draws a sheet of training images, as the network takes them.

    Where they are augmented, a row as they are and three as augmented; else four of different ones.
    """
    most = columns if config.augments else 4 * columns
    # From all over the set: folders are sorted by class.
    numbers = np.linspace(0, len(data.train) - 1, min(most, len(data.train))).astype(int)
    rows = [data.train[int(i)] for i in numbers]
    images = jnp.asarray(np.stack([row["image"] for row in rows]))

    @jax.jit
    def shown(key):
        return augment.denormalise(prepare(config, images, key), config.mean, config.std)

    keys = [None, *map(jax.random.key, range(3))] if config.augments else [None]
    titles = [data.title(row) for row in rows] * len(keys)
    heading = "training images"
    heading += ": as they are, then augmented three times" if config.augments else ""
    sheet = np.concatenate([shown(key) for key in keys])
    draw_images(sheet, titles, path, columns=min(columns, len(rows)), heading=heading)
