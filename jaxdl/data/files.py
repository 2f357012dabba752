"""Pictures in files: the one decoder, and folders of labelled pictures."""

import dataclasses
import io
import logging
import os
import struct
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from jaxdl.data.sources import Example, ImageDataset, every_nth_of_each_class
from jaxdl.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
HELD_OUT = 10  # one in ten of each class is the test set of a folder that has none
TURNS = {  # by EXIF orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_LOG = logging.getLogger(__name__)


def decode_image(
    data: str | os.PathLike | bytes,
    *,
    size: tuple[int, int] | None,
    channels: int,
    name: str | None = None,
) -> UInt8[np.ndarray, "h w c"]:
    """Decodes a picture from a file, or from a file's bytes, to uint8 of shape (h, w, channels).

    Turned upright by its EXIF orientation; the first frame where it is animated; 16-bit grey
    scaled to 8 bits; transparency laid over white, as a page would show it; converted to grey
    (`channels=1`, ITU-R 601 luma) or RGB (`channels=3`). With `size`, in (h, w): the largest
    centred crop of that aspect, resized bilinearly and antialiased, which is the same as resizing
    the shorter side and cropping the centre. Without it, as it is stored.

    Raises UserError naming the file, or `name` for bytes, where it is missing, empty or corrupt.
    """
    if channels not in (1, 3):
        raise UserError(f"images are decoded to 1 or 3 channels, not {channels}")
    if isinstance(data, bytes):
        name, file = name or "the image", io.BytesIO(data)
    else:
        name, file = name or os.fspath(data), data
    try:
        with Image.open(file) as image:
            image.load()
            image = _eight_bits(_upright(image), "L" if channels == 1 else "RGB")
    except FileNotFoundError as error:
        raise UserError(f"{name}: there is no such file") from error
    # Each of Pillow's readers has its own way of stumbling over broken bytes.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "the bytes are no known image format" if _unknown(error) else error
        raise UserError(
            f"{name}: cannot be read as an image ({reason}); mend or remove it"
        ) from error
    if size is not None:
        h, w = size
        image = ImageOps.fit(image, (w, h), method=Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _unknown(error: BaseException) -> bool:
    # Pillow's own message is the repr of a BytesIO where it was given bytes.
    return type(error).__name__ == "UnidentifiedImageError"


def _upright(image: Image.Image) -> Image.Image:
    """Turns a picture as its EXIF says, or not at all where that cannot be read.

    `ImageOps.exif_transpose` also writes the EXIF anew, and fails at any odd value in it.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, struct.error):
        return image
    turn = TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """Converts to `mode`, "L" or "RGB", where Pillow alone would clip 16 bits or drop alpha."""
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(np.rint(wide * (255 / 65535)), 0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floating point, whose range is not stated")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    return image.convert(mode)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSource:
    """Labelled picture files, decoded at each access."""

    files: tuple[Path, ...]
    labels: np.ndarray
    size: tuple[int, int]
    channels: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int, /) -> Example:
        image = decode_image(self.files[i], size=self.size, channels=self.channels)
        return {"image": image, "label": np.int32(self.labels[i])}

    def subset(self, where: np.ndarray) -> "FileSource":
        """Returns the source of the files whose entry in `where` (bool) is true."""
        files = tuple(self.files[i] for i in np.flatnonzero(where))
        return dataclasses.replace(self, files=files, labels=self.labels[where])


def image_folder(
    path: str | os.PathLike, *, size: tuple[int, int], channels: int = 3
) -> ImageDataset:
    """Reads PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, the layout of `tfds.ImageFolder`.

    Classes are the folders of train, sorted by name; pictures are those named .png, .jpg, .jpeg,
    .bmp, .gif or .webp, sorted by name, brought to `size` (h, w) and `channels` by `decode_image`.
    Where there is no test/, validation/ serves; where there is neither, one picture in ten of each
    class is held out, the same ones for as long as the files are the same: a first look should
    not need files moved about, and a log line says so, since it is a choice.

    Raises UserError for a missing folder, no train/, a class without a picture, an empty file or a
    class that only the test set has.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; give one that holds train/CLASS/*.png")
    if not (root / "train").is_dir():
        raise UserError(f"{root}: has no train/; lay the pictures out as {root}/train/CLASS/*.png")
    classes = _class_names(root / "train")
    if not classes:
        raise UserError(f"{root / 'train'}: has no class folders; lay out as train/CLASS/*.png")
    train = _read_split(root / "train", classes, size=size, channels=channels)
    for label, name in enumerate(classes):
        if not np.any(train.labels == label):
            raise UserError(f"{root / 'train' / name}: has no images ({', '.join(SUFFIXES)})")
    held_out = next((root / s for s in ("test", "validation") if (root / s).is_dir()), None)
    if held_out is not None:
        test = _read_split(held_out, classes, size=size, channels=channels)
    else:
        chosen = every_nth_of_each_class(train.labels, HELD_OUT)
        train, test = train.subset(~chosen), train.subset(chosen)
        _LOG.warning(
            "%s has no test/: %d of its %d training images are held out as the test set",
            *(root, len(test), len(train) + len(test)),
        )
    if not len(test):
        raise UserError(f"{root}: no image is left to test on; add some under {root}/test/CLASS/")
    return ImageDataset(name=f"folder:{root}", classes=classes, train=train, test=test)


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."))


def _read_split(
    folder: Path, classes: tuple[str, ...], *, size: tuple[int, int], channels: int
) -> FileSource:
    unknown = sorted(set(_class_names(folder)) - set(classes))
    if unknown:
        raise UserError(f"{folder / unknown[0]}: the training set has no class {unknown[0]!r}")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        here = folder / name
        found = sorted(here.iterdir()) if here.is_dir() else []
        found = [p for p in found if p.suffix.lower() in SUFFIXES and p.name[0] != "."]
        for file in found:
            if file.stat().st_size == 0:
                raise UserError(f"{file}: is empty; mend or remove it")
        files += found
        labels += [label] * len(found)
    return FileSource(
        files=tuple(files), labels=np.array(labels, np.int32), size=size, channels=channels
    )
