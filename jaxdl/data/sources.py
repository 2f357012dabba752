"""A source is anything with `len` and `getitem`: it gives examples, one at a time, in any order.

Libraries that only some sources need (scikit-learn, TFDS) are imported where they are used, so that
importing this package costs neither their seconds nor their presence.
"""

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from jaxdl.errors import UserError

DIGITS_HELD_OUT = 5  # one in five of each class
RESIDENT_LIMIT = 2 * 2**30  # bytes of decoded examples that are still kept in memory

Example = Mapping[str, np.ndarray | np.generic]  # no batch axis; a label is a NumPy scalar


@runtime_checkable
class Source(Protocol):
    """Examples by number: `source[i]` is a mapping from names to arrays without a batch axis."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Example: ...


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Examples in memory: `arrays` maps names to arrays with a leading axis of examples."""

    arrays: Mapping[str, np.ndarray]

    def __post_init__(self):
        lengths = {name: len(array) for name, array in self.arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"a source needs arrays of one length, not {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, i: int, /) -> Example:
        return {name: array[i] for name, array in self.arrays.items()}

    @property
    def nbytes(self) -> int:
        """The size in memory, in bytes."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageDataset:
    """Labelled images in two splits: {"image": uint8 (h, w, c), "label": int32 in [0, classes)}."""

    name: str  # "digits", "mnist", "folder:PATH"
    classes: tuple[str, ...]
    train: Source
    test: Source

    def __post_init__(self):
        for split, source in (("train", self.train), ("test", self.test)):
            if isinstance(source, ArraySource):
                where = f"{self.name} ({split})"
                check_labels(source.arrays["label"], classes=len(self.classes), where=where)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The (h, w, c) of every image; decodes the first one where they are in files."""
        return self.train[0]["image"].shape  # pyright: ignore[reportReturnType]

    def title(self, example: Example) -> str:
        """Names what an example shows."""
        return self.classes[int(example["label"])]


def check_labels(
    labels: Int[np.ndarray, " b"], *, classes: int, where: str, first: int = 0
) -> None:
    """Raises UserError naming the first label outside [0, classes), counting examples from `first`.

    Nothing on the device would: an index out of range is clipped or dropped there in silence.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        i = int(wrong[0])
        raise UserError(
            f"{where}: example {first + i} has label {int(labels[i])}, outside [0, {classes}); "
            "mend or remove such examples"
        )


def every_nth_of_each_class(labels: Int[np.ndarray, " b"], n: int) -> Bool[np.ndarray, " b"]:
    """Chooses a stratified n-th: of each class, in order, the middle one of every n examples.

    The rule is arithmetic on the order alone, so no library's random numbers can ever change it.
    """
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[n // 2 :: n]] = True
    return chosen


def digits() -> ImageDataset:
    """Returns scikit-learn's bundled handwritten digits: 1,438 to train on and 359 to test on.

    Images (8, 8, 1), uint8: the file's 0..16 scaled by 255/16 and rounded. The test set is the
    third of every five examples of each class in the file's order, the same for everybody.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int32)
    test = every_nth_of_each_class(labels, DIGITS_HELD_OUT)
    return ImageDataset(
        name="digits",
        classes=tuple(str(i) for i in range(10)),
        train=ArraySource({"image": images[~test], "label": labels[~test]}),
        test=ArraySource({"image": images[test], "label": labels[test]}),
    )


def load_into_memory(
    source: Source, *, progress: Callable[[int, int], None] | None = None, threads: int = 8
) -> ArraySource:
    """Reads every example of a source once, in threads, into arrays of one shape a name.

    `progress` is called with the number of examples read and their total, now and then. Threads
    help where decoding or the disk releases the interpreter lock, as Pillow does for JPEG and PNG.

    Raises ValueError naming the first example whose names, shapes or types differ from the first's.
    """
    if isinstance(source, ArraySource):
        return source
    total, kind = len(source), _kind(source[0])
    arrays = {name: np.empty((total, *shape), dtype) for name, (dtype, shape) in kind.items()}

    def read(start: int) -> int:
        stop = min(start + chunk, total)
        for i in range(start, stop):
            example = source[i]
            if _kind(example) != kind:
                raise ValueError(f"example {i} has {_kind(example)}, the first {kind}")
            for name, value in example.items():
                arrays[name][i] = value
        return stop - start

    chunk, done = 64, 0
    with ThreadPoolExecutor(threads) as pool:
        for count in pool.map(read, range(0, total, chunk)):
            done += count
            if progress is not None:
                progress(done, total)
    return ArraySource(arrays)


def _kind(example: Example) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Returns the type and the shape of each array of an example."""
    arrays = {name: np.asarray(value) for name, value in example.items()}
    return {name: (array.dtype, array.shape) for name, array in arrays.items()}
