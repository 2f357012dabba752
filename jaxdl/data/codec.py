"""What a tokeniser is, and how the text of tokens is read, whole or as it comes."""

from __future__ import annotations

import abc
import codecs
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxdl.errors import UserError
from jaxdl.types import Array

Tokens = Sequence[int] | np.ndarray | Array

PAD = 0  # stands for no text
FILE = "tokenizer.json"


class Tokenizer(abc.ABC):
    """Text to tokens in [1, size), and tokens to text."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Tokens in the vocabulary, padding counted: the v of a network."""

    @property
    def unwritten(self) -> tuple[int, ...]:
        """The tokens that no training text has, so that nothing was learnt of them."""
        return (PAD,)

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that a model writes where a text is at its end; most tokenisers have none."""
        return ()

    @abc.abstractmethod
    def encode(self, text: str) -> Int[np.ndarray, " t"]:
        """Returns the text's tokens, int32; raises UserError for what is not valid Unicode."""

    @abc.abstractmethod
    def to_bytes(self, tokens: Tokens) -> bytes:
        """Returns what the tokens stand for, in UTF-8, which may begin or end within a character.

        Raises ValueError for a token outside [0, size).
        """

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Returns all that `load_tokenizer` needs, as plain JSON values; "kind" names the class."""

    def decode(self, tokens: Tokens) -> str:
        """Returns the text of tokens; bytes that are no UTF-8 are read as U+FFFD."""
        return self.to_bytes(tokens).decode("utf-8", "replace")

    def decode_stream(self, pieces: Iterable[Tokens]) -> Iterator[str]:
        """Yields the text of each piece of a stream, keeping a character that is cut for the next.

        One more text follows the last piece: what is left where the stream ends within a character.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for tokens in pieces:
            yield decoder.decode(self.to_bytes(tokens))
        yield decoder.decode(b"", final=True)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `tokenizer.json` into a folder, aside and renamed; for `load_tokenizer`."""
        final = Path(folder) / FILE
        aside = final.with_suffix(".incomplete")
        aside.write_text(json.dumps(self.to_json()), encoding="ascii")
        aside.replace(final)


def joined(tokens: Tokens, table: Sequence[bytes]) -> bytes:
    """Joins what tokens stand for; Python's own negative indices would be wrong in silence."""
    numbers = np.asarray(tokens, np.int64)
    wrong = numbers[(numbers < 0) | (numbers >= len(table))]
    if wrong.size:
        raise ValueError(f"there is no token {wrong[0]} in a vocabulary of {len(table)}")
    return b"".join(table[i] for i in numbers)


def utf8(text: str) -> bytes:
    """Encodes text; raises UserError for lone surrogates, which are what is left of other bytes."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text is not valid Unicode at character {error.start}") from error
