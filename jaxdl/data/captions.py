"""Captioned pictures: scenes of digits made on the way, or files with a sentence each.

Either gives {"image": uint8 (h, w, c), "tokens": int32 (s)}; tokens are padded with 0, and nothing
but padding is no text.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from jaxtyping import Int, UInt8

from jaxdl.data.bpe import BPETokenizer
from jaxdl.data.codec import Tokenizer
from jaxdl.data.files import HELD_OUT, decode_image
from jaxdl.data.images import resize, to_float
from jaxdl.data.scenes import THINGS, Scenes, every_phrase, is_held_out
from jaxdl.data.sources import Example, ImageDataset, Source, load_into_memory
from jaxdl.data.text import read_json_lines
from jaxdl.data.tokenizers import WordTokenizer
from jaxdl.errors import UserError

CAPTIONS = "metadata.jsonl"  # its name in Hugging Face's ImageFolder
MULTIPLE = 8  # texts are padded to

_LOG = logging.getLogger(__name__)


class Pictures(Protocol):
    """Pictures by number, and what each shows in words."""

    def __len__(self) -> int: ...

    def picture(self, i: int) -> UInt8[np.ndarray, "h w c"]:
        """Returns picture number i."""
        ...

    def caption(self, i: int) -> str:
        """Returns its caption."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captioned:
    """Captioned pictures as a source, their captions in `length` tokens; what is more is cut."""

    pictures: Pictures
    tokenizer: Tokenizer
    length: int

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int, /) -> Example:
        tokens = encode_caption(self.tokenizer, self.pictures.caption(i))
        (row,) = pad_captions([tokens[: self.length]], self.length)
        return {"image": self.pictures.picture(i), "tokens": row}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionDataset:
    """Captioned pictures in two splits, and the tokeniser of their captions."""

    name: str
    tokenizer: Tokenizer
    train: Captioned
    test: Captioned

    def title(self, example: Example) -> str:
        """Says what an example shows."""
        return self.tokenizer.decode(np.asarray(example["tokens"])).strip()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneDataset(CaptionDataset):
    """Scenes of digits. Of those to test on every thing is held out; of `seen` none is.

    Both are drawn with pictures of digits that training does not have.
    """

    digits: ImageDataset
    unseen: Scenes
    seen: Scenes


def encode_caption(tokenizer: Tokenizer, text: str) -> Int[np.ndarray, " t"]:
    """Returns the tokens of a caption or a prompt, brought to one way of writing."""
    return tokenizer.encode(rewritten(text))


def rewritten(text: str) -> str:
    """Writes a text in lower case, with one space before each word and none before a comma."""
    return "".join(f" {word}" for word in text.lower().split()).replace(" ,", ",")


def pad_captions(captions: Sequence[Int[np.ndarray, " _"]], length: int) -> Int[np.ndarray, "b s"]:
    """Sets captions side by side, padded with 0 to `length`, or longer where one is."""
    longest = max([length, *map(len, captions)])
    rows = np.zeros((len(captions), -(-longest // MULTIPLE) * MULTIPLE), np.int32)
    for row, tokens in zip(rows, captions, strict=True):
        row[: len(tokens)] = tokens
    return rows


def digit_scenes(
    digits: ImageDataset, *, side: int, count: int, test: int, seed: int = 0
) -> SceneDataset:
    """Makes scenes of a dataset of handwritten digits, `count` to train on and `test` of a kind.

    Digits are brought to `side` pixels a side. Raises UserError for a dataset of anything else.
    """
    if digits.classes != tuple(str(digit) for digit in range(10)):
        raise UserError(f"--dataset {digits.name}: scenes are made of digits, 0 to 9")
    pieces = {word for text in every_phrase() for word in WordTokenizer.split(f" {text}")}
    tokenizer = WordTokenizer(tuple(sorted(pieces)))
    length = max(len(encode_caption(tokenizer, text)) for text in every_phrase())
    held_out, others = (
        tuple(thing for thing in THINGS if is_held_out(thing) == out) for out in (True, False)
    )
    train, real = (
        functools.partial(Scenes, *_grey(source, side), seed=seed)
        for source in (digits.train, digits.test)
    )
    captioned = functools.partial(Captioned, tokenizer=tokenizer, length=length)
    unseen = real(things=held_out, count=test, stream=1)
    return SceneDataset(
        name=f"scenes of {digits.name}",
        tokenizer=tokenizer,
        train=captioned(pictures=train(things=others, count=count, stream=0)),
        test=captioned(pictures=unseen),
        digits=digits,
        unseen=unseen,
        seen=real(things=others, count=test, stream=2),
    )


def _grey(source: Source, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pictures of digits, uint8 [n side side], and their labels."""
    arrays = load_into_memory(source).arrays
    images = arrays["image"]
    if images.shape[1:3] != (side, side):
        smaller = jax.jit(lambda x: resize(to_float(x), (side, side)) * 255)
        parts = [np.rint(smaller(images[i : i + 4096])) for i in range(0, len(images), 4096)]
        images = np.concatenate(parts).astype(np.uint8)
    return images[..., 0], arrays["label"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionedFiles:
    """Picture files with a caption each, decoded at each access."""

    files: tuple[Path, ...]
    captions: tuple[str, ...]
    size: tuple[int, int]
    channels: int

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, i: int) -> UInt8[np.ndarray, "h w c"]:
        """Decodes picture number i, see `decode_image`."""
        return decode_image(self.files[i], size=self.size, channels=self.channels)

    def caption(self, i: int) -> str:
        """Returns its caption."""
        return self.captions[i]

    def subset(self, numbers: Sequence[int]) -> CaptionedFiles:
        """Returns the pictures of these numbers."""
        files, captions = ([of[i] for i in numbers] for of in (self.files, self.captions))
        return dataclasses.replace(self, files=tuple(files), captions=tuple(captions))


def caption_folder(
    path: str | os.PathLike, *, size: tuple[int, int], channels: int, vocabulary: int, length: int
) -> CaptionDataset:
    """Reads pictures and captions as Hugging Face's ImageFolder has them.

    PATH/train/metadata.jsonl and PATH/test/metadata.jsonl (or validation/), or one
    PATH/metadata.jsonl, of which one picture in ten is then held out. A line is
    {"file_name": "cats/1.png", "text": "a grey cat"}, the file as seen from the metadata; other
    fields are ignored, and so are blank lines.

    Captions are read by a byte-pair encoding of `vocabulary` tokens, learnt from those to train
    on, and cut after `length` tokens.

    Raises UserError where there is no such file, and, naming the line, for one that is anything
    else, whose picture is missing, or whose text is blank.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"--folder {root}: there is no such folder")
    read = functools.partial(_read_captions, size=size, channels=channels)
    if (root / "train" / CAPTIONS).exists():
        held_out = [root / name for name in ("test", "validation")]
        there = [folder for folder in held_out if (folder / CAPTIONS).exists()]
        if not there:
            raise UserError(f"{root}: has train/{CAPTIONS}, and no test/{CAPTIONS}")
        train, test = read(root / "train"), read(there[0])
    elif (root / CAPTIONS).exists():
        every = read(root)
        if len(every) < HELD_OUT:
            raise UserError(f"{root / CAPTIONS}: {len(every)} pictures are too few; 10 will do")
        numbers = range(len(every))
        test = every.subset(numbers[HELD_OUT // 2 :: HELD_OUT])
        train = every.subset([i for i in numbers if i % HELD_OUT != HELD_OUT // 2])
        _LOG.warning("%s has no test/: one picture in ten is held out, %d", root, len(test))
    else:
        raise UserError(
            f'{root}: has no {CAPTIONS} with lines like {{"file_name": "1.png", "text": "a cat"}}'
        )
    tokenizer = BPETokenizer.train(map(rewritten, train.captions), size=vocabulary)
    lengths = [len(encode_caption(tokenizer, text)) for text in (*train.captions, *test.captions)]
    if longer := sum(n > length for n in lengths):
        _LOG.warning("%d captions have more than %d tokens, and are cut", longer, length)
    captioned = functools.partial(Captioned, tokenizer=tokenizer, length=min(length, max(lengths)))
    return CaptionDataset(
        name=f"folder:{root}",
        tokenizer=tokenizer,
        train=captioned(pictures=train),
        test=captioned(pictures=test),
    )


def _read_captions(folder: Path, *, size: tuple[int, int], channels: int) -> CaptionedFiles:
    path = folder / CAPTIONS
    files: list[Path] = []
    captions: list[str] = []
    example = {"file_name": "1.png", "text": "a cat"}
    for where, (name, text) in read_json_lines(path, example):
        if not (folder / name).is_file():
            raise UserError(f"{where}: there is no file {folder / name}")
        files.append(folder / name)
        captions.append(text)
    if not files:
        raise UserError(f"{path}: has no line")
    return CaptionedFiles(
        files=tuple(files), captions=tuple(captions), size=size, channels=channels
    )
