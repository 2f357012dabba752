"""TFDS datasets: prepared once with TensorFlow, read ever after without it; images of them."""

import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import io
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl.data.files import decode_image
from jaxdl.data.sources import (
    RESIDENT_LIMIT,
    ArraySource,
    Example,
    ImageDataset,
    Source,
    check_labels,
    load_into_memory,
)
from jaxdl.errors import UserError

DECODER_VERSION = 1  # raise it when `decode_image` gives other pixels, and caches are made anew

_LOG = logging.getLogger(__name__)


def tfds_images(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
    size: tuple[int, int] | None = None,
) -> ImageDataset:
    """Reads any TFDS dataset of one image and one class label, e.g. "mnist".

    Images keep their size; where it varies they are brought to `size` (h, w). The test set is the
    split "test", or else "validation".

    Decoded sets of up to RESIDENT_LIMIT bytes are kept beside the prepared files and mapped into
    memory from then on; larger ones are decoded at each access.

    Raises UserError for features or splits of another kind, and where `prepared` does.
    """
    with prepared(name, data_dir=data_dir, manual_dir=manual_dir) as builder:
        recipe = _recipe(builder, name, size)
        splits = _splits(builder, name)
    train, test = (RecordSource(split=split, **recipe) for split in splits)
    return ImageDataset(
        name=name,
        classes=recipe["classes"],
        train=_decoded(train) if train.nbytes <= RESIDENT_LIMIT else train,
        test=_decoded(test) if test.nbytes <= RESIDENT_LIMIT else test,
    )


@contextlib.contextmanager
def prepared(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
) -> Iterator[Any]:
    """Opens the builder of a dataset, prepared if it was not yet; TFDS is quiet within.

    `name` may carry TFDS's config and version ("NAME/CONFIG:VERSION"); `data_dir` is TFDS's own,
    by default ~/tensorflow_datasets.

    Not prepared yet: TFDS prepares it as ArrayRecord, which needs TensorFlow (unless the builder's
    NEEDS_TENSORFLOW is false) and a network, or the files it would download, by their own names, in
    `manual_dir`; their checksums are TFDS's. TFDS writes to a folder of another name and renames it
    at the end, so a killed run leaves nothing that could be taken for a dataset, and of several
    processes that prepare it at once the first one's files are read by all.

    Raises UserError for an unknown name (with the nearest ones), a missing manual folder, or what
    preparing needs and does not find.
    """
    with _quiet():
        builder = _open(name, data_dir)
        if not builder.is_prepared():
            _prepare(builder, name, manual_dir)
            builder = _open(name, data_dir)  # it may be another process that has prepared it
        yield builder


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSource:
    """One split of a prepared TFDS dataset, read and decoded at each access.

    It is the description of its files, opened at the first access: so it travels to worker
    processes as a few strings.
    """

    directory: str
    split: str
    image_key: str
    label_key: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    resize: bool

    @functools.cached_property
    def _records(self) -> Any:
        import tensorflow_datasets as tfds

        builder: Any = tfds.builder_from_directory(self.directory)
        undecoded = {self.image_key: tfds.decode.SkipDecoding()}
        return builder.as_data_source(split=self.split, decoders=undecoded)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_records"}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int, /) -> Example:
        where = f"{self.directory} ({self.split})"
        example = self._records[i]
        label = np.array(example[self.label_key], np.int32)
        check_labels(label[None], classes=len(self.classes), where=where, first=i)
        h, w, c = self.shape
        image = decode_image(
            example[self.image_key],
            size=(h, w) if self.resize else None,
            channels=c,
            name=f"{where}, example {i}",
        )
        return {"image": image, "label": label}

    @property
    def nbytes(self) -> int:
        """The decoded size, in bytes."""
        return len(self) * (int(np.prod(self.shape)) + 4)


def _open(name: str, data_dir: str | os.PathLike | None) -> Any:
    import tensorflow_datasets as tfds

    try:
        # Never ask Google's buckets: without a network that is a hang, and it is no local copy.
        return tfds.builder(name, data_dir=data_dir, file_format="array_record", try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see tensorflow.org/datasets"
        raise UserError(f"TFDS has no dataset {name!r}{hint}") from error
    # TFDS answers a config, a version or a file format that does not fit with any of these.
    except (ValueError, AssertionError, RuntimeError, OSError, ImportError) as error:
        reason = _first_line(error.__cause__ or error)
        raise UserError(f"TFDS cannot open {name!r}: {reason}") from error


def _prepare(builder: Any, name: str, manual_dir: str | os.PathLike | None) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.extractor import ExtractError

    place = builder.data_dir_root
    if manual_dir is not None and not Path(manual_dir).is_dir():
        raise UserError(f"--manual-dir {manual_dir}: there is no such folder")
    needed = ["tensorflow"] if getattr(builder, "NEEDS_TENSORFLOW", True) else []
    for module in [*needed, "importlib_resources"]:  # TFDS declares neither
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"{name} is not prepared in {place}, and preparing it once needs {module}: "
                "pip install 'jaxdl[prepare]' (in a checkout: pip install -e '.[prepare]'), "
                "and pass --manual-dir FOLDER if its files are already downloaded"
            )
    _LOG.warning("preparing %s in %s, once; without a network it gives up in minutes", name, place)
    config = tfds.download.DownloadConfig(
        manual_dir=None if manual_dir is None else os.fspath(manual_dir), try_download_gcs=False
    )
    try:
        builder.download_and_prepare(download_config=config)
    # Downloading, checksums and unpacking each raise an exception of TFDS's own; every network
    # error is an OSError; a manual folder that lacks something is an AssertionError.
    except (
        OSError,
        AssertionError,
        tfds.download.DownloadError,
        NonMatchingChecksumError,
        ExtractError,
    ) as error:
        if not builder.is_prepared():  # another process was first: its files are the same
            raise UserError(
                f"{name}: preparing failed ({type(error).__name__}: {_first_line(error)}); download"
                f" its files elsewhere and pass their folder as --manual-dir (now {manual_dir})"
            ) from error
    if not builder.is_prepared():
        raise UserError(f"{builder.data_path} is there but incomplete; delete it and run again")


def _recipe(builder: Any, name: str, size: tuple[int, int] | None) -> dict[str, Any]:
    """Finds the one image and the one label, and the shape that every image is to have."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features)
    images = [k for k, f in features.items() if type(f) is tfds.features.Image]
    labels = [k for k, f in features.items() if type(f) is tfds.features.ClassLabel]
    if len(images) != 1 or len(labels) != 1:
        kinds = ", ".join(f"{key} ({type(f).__name__})" for key, f in features.items())
        raise UserError(f"{name}: needs one Image and one ClassLabel, but has {kinds}")
    feature = features[images[0]]
    if feature.np_dtype != np.uint8:
        raise UserError(f"{name}: its images are {np.dtype(feature.np_dtype)}; only uint8 is read")
    *stored, channels = feature.shape
    varies = None in stored
    if varies and size is None:
        raise UserError(f"{name}: its images vary in size; say to which size to bring them")
    return {
        "directory": os.fspath(builder.data_path),
        "image_key": images[0],
        "label_key": labels[0],
        "classes": tuple(features[labels[0]].names),
        "shape": (*(size if varies and size else stored), channels or 3),
        "resize": varies,
    }


def _splits(builder: Any, name: str) -> tuple[str, str]:
    has = list(builder.info.splits)
    test = next((split for split in ("test", "validation") if split in has), None)
    if "train" not in has or test is None:
        raise UserError(f"{name}: needs splits train and test (or validation), has {has}")
    return "train", test


def _decoded(source: RecordSource) -> Source:
    """Maps the decoded arrays of a source into memory, decoding and writing them the first time.

    Decoding costs a quarter of a millisecond an image or more, and would be paid at every start.
    They lie within the prepared version's own folder, so that they go when it goes, written aside
    and renamed, so that they are whole or absent.
    """
    h, w, c = source.shape
    kind = "resized" if source.resize else "stored"
    final = Path(source.directory) / f"decoded-{source.split}-{h}x{w}x{c}-{kind}-v{DECODER_VERSION}"
    if not final.is_dir():
        _LOG.warning("decoding %d images of %s, once", len(source), source.directory)
        arrays = load_into_memory(source).arrays
        try:
            _write_arrays(final, arrays)
        except OSError as error:
            _LOG.warning("the decoded images cannot be kept in %s (%s)", final, error)
            return ArraySource(arrays)
    return ArraySource(
        {name: np.load(final / f"{name}.npy", mmap_mode="r") for name in ("image", "label")}
    )


def _write_arrays(final: Path, arrays: Mapping[str, np.ndarray]) -> None:
    aside = Path(tempfile.mkdtemp(prefix=f"{final.name}.incomplete.", dir=final.parent))
    try:
        aside.chmod(0o755)  # mkdtemp's folders are private, prepared datasets are shared
        for name, array in arrays.items():
            np.save(aside / f"{name}.npy", array)
        with contextlib.suppress(FileExistsError):
            aside.rename(final)
    except OSError:
        if not final.is_dir():  # another process was first: its arrays are the same
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS's banners and TensorFlow's device log off the screen; progress bars stay there.

    The bars are written to stderr, and only a terminal is shown them.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds
    from absl import logging as absl_logging

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    loggers = absl_logging.get_absl_logger(), logging.getLogger("urllib3")  # logs every retry
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
