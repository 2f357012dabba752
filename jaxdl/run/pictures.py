"""Sheets of pictures, and films of sheets, as files that every viewer shows."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxdl.errors import UserError

GAP = 2  # pixels between pictures


def sheet(
    images: Float[np.ndarray, "b h w c"], *, columns: int, side: int = 40
) -> UInt8[np.ndarray, "height width rgb"]:
    """Lays images in [0, 1], grey or in colours, side by side, row after row, on a dark ground.

    Small ones are enlarged by a whole number, so that each has `side` pixels or somewhat fewer.
    What lies outside [0, 1] is cut off.
    """
    count, h, w, c = images.shape
    zoom = max(1, side // max(h, w))
    pixels = np.rint(np.clip(np.nan_to_num(images), 0, 1) * 255).astype(np.uint8)
    pixels = np.broadcast_to(pixels, (count, h, w, 3)) if c == 1 else pixels
    pixels = pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)
    height, width = h * zoom + GAP, w * zoom + GAP
    rows = -(-count // columns)
    ground = np.full((rows * height + GAP, columns * width + GAP, 3), 64, np.uint8)
    for i, picture in enumerate(pixels):
        top, left = i // columns * height + GAP, i % columns * width + GAP
        ground[top : top + h * zoom, left : left + w * zoom] = picture
    return ground


def check_picture(path: Path) -> None:
    """Makes the folder of a picture; raises UserError where `save_picture` would then fail.

    For what takes long to make: a picture beside it is written and deleted.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.open("ab").close()  # nobody writes to a folder, or to a file that is not theirs
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=path.suffix) as file:
            Image.new("RGB", (1, 1)).save(file.name)
    # Pillow's words for a name of no format, and for a format that it only reads.
    except (OSError, ValueError, KeyError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"--out {path} cannot be written ({why}): try a .png elsewhere") from error


def save_picture(path: Path, picture: UInt8[np.ndarray, "height width rgb"]) -> None:
    """Writes one picture, of the format that its name says, and its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def save_film(
    path: Path, frames: Sequence[UInt8[np.ndarray, "height width rgb"]], *, seconds: float = 4.0
) -> None:
    """Writes a GIF that plays for `seconds`, stays on the last frame for two, and begins anew."""
    each = max(20, round(1000 * seconds / len(frames)))
    pictures = [Image.fromarray(frame).quantize(64) for frame in frames]
    durations = [*[each] * (len(frames) - 1), 2000]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)
