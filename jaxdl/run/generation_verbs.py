"""What is done with a trained U-Net: samples of a class, and pictures filled in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro
from jaxtyping import Bool

from jaxdl.data import decode_image
from jaxdl.errors import UserError
from jaxdl.models import UNet
from jaxdl.run.cli import VerbConfig
from jaxdl.run.generation import SamplingConfig, check_sampling
from jaxdl.run.generator import Sampling, load_generator
from jaxdl.run.pictures import check_picture, save_picture, sheet
from jaxdl.run.progress import say
from jaxdl.run.workdir import Workdir


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig(SamplingConfig):
    """Options of `sample`."""

    label: str | None = None
    """The class to sample [default: each of them]."""
    count: int = 8
    """Pictures a class."""


def sample(options: SampleConfig) -> None:
    """Draws a sheet of pictures, a row a class."""
    generator, about = load_generator(options.workdir, UNet)
    how = options.how(generator)
    check_sampling(generator, options.count, how)
    names = about["classes"] if generator.guidable else []
    every = [*range(len(names))]
    chosen = every if options.label is None else [number(names, options.label)]
    labels = np.repeat(np.array(chosen or [0], np.int32), options.count)
    check_picture(options.path)
    images = generator.sample(labels, jax.random.key(options.seed), how)
    save_picture(options.path, sheet(images, columns=options.count))
    told = f"of each: {', '.join(names[i] for i in chosen)}" if chosen else "pictures"
    say(f"{options.path}  {options.count} {told}, {how}")


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
    guidance: float | None = None
    """As of `sample`, where there is a label [default: as the run]."""
    invert: bool = False
    """Invert the picture: for dark strokes on white paper, where training had the reverse."""
    seed: int = 0
    """The same seed draws the same pictures."""
    out: Path | None = None
    """Where to write the sheet [default: samples/inpaint.png in the workdir]."""


def inpaint(options: InpaintConfig) -> None:
    """Makes up what is hidden of a picture: the picture, what is shown of it, and the results."""
    generator, about = load_generator(options.workdir, UNet)
    told, guidance = generator.model.classes or 0, 1.0
    if options.label is not None:
        told = number(about["classes"] if generator.guidable else [], options.label)
        guidance = generator.how.guidance if options.guidance is None else options.guidance
    elif options.guidance not in (None, 1):
        raise UserError(f"--guidance {options.guidance:g} needs a --label to guide by")
    how = Sampling("ddpm", options.steps, guidance)
    check_sampling(generator, options.count, how)
    h, w, c = generator.shape
    channels = min(c, about["stored_shape"][-1])  # as in training, grey is repeated, colours mixed
    picture = decode_image(options.picture, size=(h, w), channels=channels)
    picture = np.broadcast_to((255 - picture if options.invert else picture) / 255, (h, w, c))
    mask = np.broadcast_to(shown(h, w, options.hide)[..., None], (h, w, c))
    known, masks = (np.broadcast_to(a, (options.count, h, w, c)) for a in (picture, mask))
    labels = np.full(options.count, told, np.int32)
    key = jax.random.key(options.seed)
    path = options.out or Workdir(options.workdir).samples / "inpaint.png"
    check_picture(path)
    images = generator.inpaint(known.astype(np.float32), masks, labels, key=key, how=how)
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


def number(names: list[str], label: str) -> int:
    """Finds a class by its name; raises UserError with the names that there are."""
    if label not in names:
        raise UserError(
            f"--label {label}: there are {', '.join(names) or 'no classes in this run'}"
        )
    return names.index(label)
