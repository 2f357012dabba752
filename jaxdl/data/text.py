"""Texts to model: a training text and a held-out one, as strings.

What is held out is told in each dataset's docstring, because a number is worth its split.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sysconfig
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jaxdl.data.codec import utf8
from jaxdl.data.tfds import prepared
from jaxdl.errors import UserError

TRAINING_SHARE = 0.9  # of a text in one piece: its beginning, as nanoGPT has it
STDLIB_HELD_OUT = 10  # one file in ten, by the checksum of its name
# Tests, tables, texts that are no code, and what other people have installed.
STDLIB_WITHOUT = {
    "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests",
    "turtledemo",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextDataset:
    """A text to train on and a held-out text."""

    name: str  # "stdlib-3.11.7", "file:PATH", "tiny_shakespeare"
    train: str
    test: str

    def __post_init__(self):
        for split, text in (("train", self.train), ("held-out", self.test)):
            if len(text) < 2:  # nothing can be predicted
                raise UserError(f"{self.name}: the {split} text has {len(text)} character(s)")


def stdlib_source(characters: int = 3_000_000) -> TextDataset:
    """Returns the source code of the running Python's own library, at most so many characters.

    Nine tenths are training text. Files that are not ASCII are left out, so a character is a byte,
    and so are tests and tables. A file's place in the order, and whether it is held out, is given
    by the CRC-32 of its name: whole files are held out, the same ones for everybody who has the
    same Python. Another version of Python has another library, hence the version in the name.

    Raises UserError where this Python came without its source.
    """
    root = Path(sysconfig.get_path("stdlib"))
    numbered = sorted((zlib.crc32(name.encode()), name) for name in _module_names(root))
    share = characters // STDLIB_HELD_OUT
    train, test = (
        _join_files(
            [root / name for n, name in numbered if (n % STDLIB_HELD_OUT == 0) is out], size
        )
        for out, size in ((False, characters - share), (True, share))
    )
    if not train or not test:
        raise UserError(f"{root}: this Python came without its source; choose another text")
    return TextDataset(name=f"stdlib-{platform.python_version()}", train=train, test=test)


def _module_names(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = set(folders) - STDLIB_WITHOUT  # os.walk then leaves them out
        here = Path(folder).relative_to(root)
        yield from ((here / file).as_posix() for file in files if file.endswith(".py"))


def _join_files(files: Sequence[Path], limit: int) -> str:
    """Joins ASCII files, a line feed between two, up to the first that would pass the limit."""
    texts: list[str] = []
    size = 0
    for file in files:
        content = file.read_bytes()
        if not content.isascii():
            continue
        size += len(content) + 1
        if size > limit:
            break
        texts.append(content.decode("ascii"))
    return "\n".join(texts)


def text_file(path: str | os.PathLike, validation: str | os.PathLike | None = None) -> TextDataset:
    """Reads a UTF-8 text file: its first 90% of characters are trained on, its last 10% held out.

    Where there is a file for validation, each file is taken whole. Line ends stay as they are; a
    byte-order mark is left out. Raises UserError for a file that is missing, empty or not UTF-8.
    """
    text = read_text(path)
    if validation is not None:
        return TextDataset(name=f"file:{path}", train=text, test=read_text(validation))
    cut = int(TRAINING_SHARE * len(text))
    return TextDataset(name=f"file:{path}", train=text[:cut], test=text[cut:])


def read_text(path: str | os.PathLike) -> str:
    """Reads a file in UTF-8; raises UserError where it is missing, empty or not UTF-8."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not UTF-8 at byte {error.start}; convert it, e.g. with iconv"
        ) from error
    if not text:
        raise UserError(f"{path}: is empty")
    return text


def read_json_lines(
    path: str | os.PathLike, example: Mapping[str, str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Reads a file of JSON lines: yields where each is, and its texts by the names of an example.

    Blank lines are passed over. Raises UserError as `read_text` does, and, with the number
    of the line, where one is not like the example, or a text is blank or not valid Unicode.
    """
    # JSON lets U+2028, at which `splitlines` cuts too, stand in a text as it is.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
            texts = tuple(value[name] for name in example)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{where}: must be like {json.dumps(example)}") from error
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{where}: {' and '.join(example)} must be text, not blank")
        try:
            utf8("".join(texts))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        yield where, texts


def tfds_text(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
) -> TextDataset:
    """Reads a TFDS dataset of one text feature, e.g. "tiny_shakespeare", whole into memory.

    The training text is the split "train"; "validation" and "test", where there are both, are held
    out together. Of `tiny_shakespeare`, which TFDS cuts 90 : 5 : 5, that makes the first 90% and
    the last 10% of the text, the split of nanoGPT (github.com/karpathy/nanoGPT). The examples of a
    split are joined by a line feed, in the order of the prepared files.

    Raises UserError for features or splits of another kind, and where `prepared` does.
    """
    import tensorflow_datasets as tfds

    with prepared(name, data_dir=data_dir, manual_dir=manual_dir) as builder:
        features = dict(builder.info.features)
        texts = [k for k, feature in features.items() if type(feature) is tfds.features.Text]
        if len(texts) != 1:
            kinds = ", ".join(f"{key} ({type(f).__name__})" for key, f in features.items())
            raise UserError(f"{name}: needs one Text, but has {kinds}")
        held_out = [split for split in ("validation", "test") if split in builder.info.splits]
        if "train" not in builder.info.splits or not held_out:
            has = list(builder.info.splits)
            raise UserError(f"{name}: needs splits train and validation or test, has {has}")
        train, *rest = (
            "\n".join(example[texts[0]].decode() for example in builder.as_data_source(split=split))
            for split in ("train", *held_out)
        )
    return TextDataset(name=name, train=train, test="".join(rest))
