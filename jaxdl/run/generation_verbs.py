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
from jaxdl.run.pictures import save_picture, sheet
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
    check_sampling(generator, options.count, options.steps)
    names = about["classes"] if generator.model.classes is not None else [""]
    chosen = range(len(names)) if options.label is None else [number(names, options.label)]
    labels = np.repeat(np.array(chosen, np.int32), options.count)
    images = generator.sample(labels, jax.random.key(options.seed), options.how)
    path = options.path
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
    generator, about = load_generator(options.workdir, UNet)
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


def number(names: list[str], label: str) -> int:
    """Finds a class by its name; raises UserError with the names that there are."""
    if label not in names:
        raise UserError(f"--label {label}: there are {', '.join(names)}")
    return names.index(label)
