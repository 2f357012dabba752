"""Tokenisers: text to numbers and back, trained on the training text alone.

Token 0 is padding and stands for no text. Bytes and pieces of BPE write down any text, characters
and words only what they have seen: the rest is UNKNOWN, read back as U+FFFD.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from jaxdl.data.bpe import BPETokenizer
from jaxdl.data.codec import FILE, PAD, Tokenizer, Tokens, joined, utf8
from jaxdl.data.gpt2_tokenizer import GPT2Tokenizer
from jaxdl.errors import UserError

UNKNOWN = 1  # of characters and words

# As GPT-2 splits, without English contractions: a word or a sign takes the space before it.
WORDS = re.compile(r" ?\w+| ?[^\w\s]|\s+?(?= ?\S)|\s+")


def load_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """Reads the tokeniser that `Tokenizer.save` wrote; raises UserError where there is none."""
    path = Path(folder) / FILE
    try:
        fields = json.loads(path.read_text(encoding="ascii"))
        return KINDS[fields.pop("kind")](**fields)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not a tokeniser of this library ({error})") from error


@dataclasses.dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """Bytes of UTF-8: byte x is token x + 1. Writes down any text; nothing to train."""

    @property
    def size(self) -> int:
        """The 256 bytes and padding."""
        return 257

    def encode(self, text: str) -> Int[np.ndarray, " t"]:
        """Returns one token a byte."""
        return np.frombuffer(utf8(text), np.uint8).astype(np.int32) + 1

    def to_bytes(self, tokens: Tokens) -> bytes:
        """Returns the bytes; padding is none."""
        return joined(tokens, [b"", *(bytes([x]) for x in range(256))])

    def to_json(self) -> dict[str, Any]:
        """Returns its name, which is all."""
        return {"kind": "byte"}


@dataclasses.dataclass(frozen=True)
class _PieceTokenizer(Tokenizer):
    """A vocabulary of pieces: padding 0, UNKNOWN 1, then `pieces` in order."""

    pieces: tuple[str, ...]

    kind: ClassVar[str]

    def __post_init__(self):
        object.__setattr__(self, "pieces", tuple(self.pieces))
        if len(set(self.pieces)) != len(self.pieces):
            raise ValueError("pieces of a vocabulary must differ")

    @staticmethod
    @abc.abstractmethod
    def split(text: str) -> Sequence[str]:
        """Cuts a text into pieces that, joined, are the text."""

    @property
    def size(self) -> int:
        """Pieces, padding and UNKNOWN."""
        return len(self.pieces) + 2

    @property
    def unwritten(self) -> tuple[int, ...]:
        """Padding, and UNKNOWN, which the text of the training never needed."""
        return (PAD, UNKNOWN)

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces, 2)}

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        return [b"", "\ufffd".encode(), *(piece.encode() for piece in self.pieces)]

    def encode(self, text: str) -> Int[np.ndarray, " t"]:
        """Returns one token a piece, UNKNOWN for those outside the vocabulary."""
        utf8(text)
        numbers = self._numbers
        return np.array([numbers.get(piece, UNKNOWN) for piece in self.split(text)], np.int32)

    def to_bytes(self, tokens: Tokens) -> bytes:
        """Returns the pieces in UTF-8; padding is none, UNKNOWN is U+FFFD."""
        return joined(tokens, self._bytes)

    def to_json(self) -> dict[str, Any]:
        """Returns the pieces."""
        return {"kind": self.kind, "pieces": list(self.pieces)}


class CharTokenizer(_PieceTokenizer):
    """Characters (Unicode code points), in the order of their numbers."""

    kind = "char"

    @staticmethod
    def split(text: str) -> Sequence[str]:
        """Returns the characters."""
        return text

    @classmethod
    def train(cls, text: str) -> CharTokenizer:
        """Takes every character of a text into the vocabulary."""
        utf8(text)
        return cls(tuple(sorted(set(text))))


class WordTokenizer(_PieceTokenizer):
    """Words and signs, each with the space before it, and what white space is left."""

    kind = "word"

    @staticmethod
    def split(text: str) -> Sequence[str]:
        """Returns the words and what is between them."""
        return WORDS.findall(text)

    @classmethod
    def train(cls, text: str, *, size: int) -> WordTokenizer:
        """Takes the most frequent words, `size` tokens in all; ties go by the alphabet."""
        utf8(text)
        if size < 3:
            raise ValueError(f"a vocabulary of words needs 3 tokens or more, not {size}")
        counts = collections.Counter(cls.split(text))
        chosen = sorted(counts, key=lambda piece: (-counts[piece], piece))[: size - 2]
        return cls(tuple(chosen))


KINDS: dict[str, Callable[..., Tokenizer]] = {
    "byte": ByteTokenizer,
    "char": CharTokenizer,
    "word": WordTokenizer,
    "bpe": BPETokenizer,
    "gpt2": GPT2Tokenizer,
}
