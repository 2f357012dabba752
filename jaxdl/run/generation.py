"""What every experiment that generates images shares: its options, and its verbs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Bool, UInt8

from jaxdl.backend import CompilationCache
from jaxdl.data import decode_image
from jaxdl.errors import UserError
from jaxdl.interop.safetensors import load_model
from jaxdl.keys import derive
from jaxdl.models import UNet
from jaxdl.run.cli import VerbConfig
from jaxdl.run.generator import (
    NOISES,
    Generator,
    NoiseName,
    PredictionName,
    Sampling,
    SolverName,
)
from jaxdl.run.images import ImageConfig
from jaxdl.run.pictures import save_picture, sheet
from jaxdl.run.progress import say
from jaxdl.run.workdir import Workdir
from jaxdl.types import Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig(ImageConfig):
    """Options of every experiment that generates images, which it takes to lie in [-1, 1]."""

    mean: float = 0.5
    """Subtracted from images in [0, 1]."""
    std: float = 0.5
    """Divided by, after that."""
    channels: Literal[1, 3] = 1
    """Grey is repeated for 3; colours are mixed to grey for 1."""

    width: int = 32
    """Channels of the first level of the U-Net."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Of the width, one a level; each level has half the size of the one before."""
    blocks: int = 2
    """Blocks a level, on the way down and on the way up."""
    attention: tuple[bool, ...] = (False, False, True)
    """Whether a level has attention."""
    heads: int = 4
    """Heads of every attention."""
    dropout: float = 0.1
    """Probability of dropping a unit within a block."""

    noise: NoiseName = "cosine"
    """How noise grows with diffusion time."""
    prediction: PredictionName = "v"
    """What the network outputs."""
    sampler: SolverName = "dpm"
    """How samples are taken in evaluation; the verb `sample` has its own option."""
    sampler_steps: int = 20
    """Steps of that sampler."""
    guidance: float = 1.0
    """Scale of its guidance; 1 is none."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        super().__post_init__()
        for name in ("mean", "std"):
            self._require(getattr(self, name) == 0.5, name, "must be 0.5: images lie in [-1, 1]")
        for name in ("width", "blocks", "heads", "sampler_steps"):
            self._require(getattr(self, name) > 0, name, "must be above 0")
        self._require(min(self.multipliers, default=0) > 0, "multipliers", "must be above 0")
        self._require(0 <= self.dropout < 1, "dropout", "must lie in [0, 1)")
        levels = len(self.multipliers)
        self._require(
            len(self.attention) == levels, "attention", "must be as many as --multipliers"
        )
        side = 2 ** (levels - 1)
        what = f"must be a multiple of {side} to halve evenly"
        self._require(self.image_size % side == 0, "image_size", what)

    @property
    def sampling(self) -> Sampling:
        """How samples are taken in evaluation."""
        return Sampling(self.sampler, self.sampler_steps, self.guidance)


def image_keys(key: Key, images: UInt8[Array, "b h w c"]) -> Key:
    """Derives a key for each image from its pixels, so that an evaluation does not depend on order.

    Each draws its own noise, whichever batch it is in, and at whichever place.
    """
    pixels = images.reshape(len(images), -1).astype(jnp.uint32)
    weights = jax.random.bits(derive(key, "weights"), pixels.shape[1:], jnp.uint32)
    return jax.vmap(lambda number: derive(key, number))((pixels * weights[None]).sum(1))


def load_generator(workdir: Path) -> tuple[Generator, Mapping[str, Any]]:
    """Reads what a run has exported, and what is said about it; UserError where there is none."""
    CompilationCache()
    folder = Workdir(workdir).model
    model, params, _, about = load_model(folder)
    if not isinstance(model, UNet) or "prediction" not in about:
        raise UserError(f"{folder} holds no generator of images")
    shape = tuple(about["image_shape"])
    return Generator(model, params, shape, about["noise"], about["prediction"]), about


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig(VerbConfig):
    """Options of `sample`."""

    label: str | None = None
    """The class to sample [default: each of them]."""
    count: int = 8
    """Pictures a class."""
    sampler: SolverName = "dpm"
    """How to get from one noise level to the next."""
    steps: int = 20
    """Steps from noise to picture."""
    guidance: float = 1.0
    """1 is the network as it is, more exaggerates what tells the class."""
    seed: int = 0
    """The same seed draws the same pictures."""
    out: Path | None = None
    """Where to write the sheet [default: samples/sample.png in the workdir]."""


def sample(options: SampleConfig) -> None:
    """Draws a sheet of pictures, a row a class."""
    generator, about = load_generator(options.workdir)
    check_sampling(generator, options.count, options.steps)
    names = about["classes"] if generator.model.classes is not None else [""]
    chosen = range(len(names)) if options.label is None else [number(names, options.label)]
    labels = np.repeat(np.array(chosen, np.int32), options.count)
    how = Sampling(options.sampler, options.steps, options.guidance)
    images = generator.sample(labels, jax.random.key(options.seed), how)
    path = options.out or Workdir(options.workdir).samples / "sample.png"
    save_picture(path, sheet(images, columns=options.count))
    told = [names[i] for i in chosen]
    say(f"{path}  {options.count} of each: {', '.join(told)}" if told[0] else str(path))


@dataclasses.dataclass(frozen=True, kw_only=True)
class InpaintConfig(VerbConfig):
    """Options of `inpaint`."""

    picture: tyro.conf.Positional[Path]
    """A picture file."""
    hide: Literal["left", "right", "top", "bottom", "middle"] = "bottom"
    """The part to make up."""
    label: str | None = None
    """What the picture shows [default: it is not told]."""
    count: int = 8
    """Pictures to make."""
    steps: int = 50
    """Steps from noise to picture; each is taken three times."""
    guidance: float = 1.0
    """As of `sample`, where there is a label."""
    invert: bool = False
    """Invert the picture: for dark strokes on white paper, where training had the reverse."""
    seed: int = 0
    """The same seed draws the same pictures."""
    out: Path | None = None
    """Where to write the sheet [default: samples/inpaint.png in the workdir]."""


def inpaint(options: InpaintConfig) -> None:
    """Makes up what is hidden of a picture: the picture, what is shown of it, and the results."""
    generator, about = load_generator(options.workdir)
    check_sampling(generator, options.count, options.steps)
    h, w, c = generator.shape
    stored = about["stored_shape"]
    picture = decode_image(options.picture, size=(h, w), channels=stored[-1])
    picture = np.broadcast_to((255 - picture if options.invert else picture) / 255, (h, w, c))
    mask = np.broadcast_to(shown(h, w, options.hide)[..., None], (h, w, c))
    known, masks = (np.broadcast_to(a, (options.count, h, w, c)) for a in (picture, mask))
    none = generator.model.classes or 0
    told = none if options.label is None else number(about["classes"], options.label)
    how = Sampling("ddpm", options.steps, 1.0 if options.label is None else options.guidance)
    labels = np.full(options.count, told, np.int32)
    key = jax.random.key(options.seed)
    images = generator.inpaint(known.astype(np.float32), masks, labels, key=key, how=how)
    path = options.out or Workdir(options.workdir).samples / "inpaint.png"
    rows = np.concatenate([picture[None], np.where(mask, picture, 0.5)[None], images])
    save_picture(path, sheet(rows, columns=len(rows)))
    say(f"{path}  the picture, what was shown of it, and {options.count} completions")


def shown(h: int, w: int, hide: str) -> Bool[np.ndarray, "h w"]:
    """Makes the mask of what is shown when a half of a picture is hidden, or its middle."""
    y, x = np.mgrid[:h, :w]
    hidden = {
        "left": x < w // 2, "right": x >= w // 2, "top": y < h // 2, "bottom": y >= h // 2,
        "middle": (abs(2 * y - h + 1) <= h // 2) & (abs(2 * x - w + 1) <= w // 2),
    }  # fmt: skip
    return ~hidden[hide]


def check_sampling(generator: Generator, count: int, steps: int) -> None:
    """Raises UserError for numbers that cannot be meant."""
    most = NOISES[generator.noise].steps
    if not 1 <= steps <= most:
        raise UserError(f"--steps must lie in [1, {most}], got {steps}")
    if count < 1:
        raise UserError(f"--count must be at least 1, got {count}")


def number(names: list[str], label: str) -> int:
    """Finds a class by its name; raises UserError with the names that there are."""
    if label not in names:
        raise UserError(f"--label {label}: there are {', '.join(names)}")
    return names.index(label)
