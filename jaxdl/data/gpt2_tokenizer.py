"""The tokeniser of GPT-2, from the files that come with its weights, and back into them.

vocab.json      {"!": 0, ...}: the tokens, in GPT-2's signs for bytes, and their numbers
merges.txt      a line a merge, the most frequent first, as in "t h"
tokenizer.json  both in one: what newer versions of Hugging Face's libraries write instead
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxdl.data.bpe import BPETokenizer
from jaxdl.data.codec import Tokenizer, Tokens
from jaxdl.errors import UserError

VOCAB, MERGES, WHOLE = "vocab.json", "merges.txt", "tokenizer.json"
END = "<|endoftext|>"  # stood between the texts that GPT-2 was trained on


class GPT2Tokenizer(Tokenizer):
    """Byte-pair encoding over bytes with somebody else's vocabulary (Radford et al. 2019).

    Unlike the other tokenisers' its token 0 is no padding: in GPT-2 it is an exclamation mark. What
    is neither a byte nor made by a merge is special, in GPT-2 `<|endoftext|>` alone: no text is
    encoded into it, and it stands for none.
    """

    def __init__(self, vocab: Mapping[str, int], merges: Sequence[str], *, size: int | None = None):
        """Raises ValueError for a vocabulary that has no numbers for all texts.

        Args:
          vocab: the tokens and their numbers, 0, 1, ... without a gap.
          merges: pairs, "t h".
          size: tokens of the network, where it has more; those stand for no text.
        """
        from tokenizers.pre_tokenizers import ByteLevel

        self._vocab, self._merges = dict(vocab), list(merges)
        count = len(self._vocab)
        if sorted(self._vocab.values()) != list(range(count)):
            raise ValueError(f"its {count} tokens are not numbered from 0 to {count - 1}")
        written = {*ByteLevel.alphabet(), *(_joined(merge) for merge in self._merges)}
        if missing := written - self._vocab.keys():
            raise ValueError(f"it has no token {min(missing)!r}, which texts are written with")
        self._size = count if size is None else size
        if self._size < count:
            raise ValueError(f"its tokens are {count}, and the network's {size}")
        self.specials = {name: i for name, i in self._vocab.items() if name not in written}
        self._inner = BPETokenizer(_described(self._vocab, self._merges, self.specials))

    @classmethod
    def read(cls, folder: str | os.PathLike, *, size: int | None = None) -> GPT2Tokenizer:
        """Reads vocab.json and merges.txt, or where there is no such pair, tokenizer.json.

        Raises UserError where neither is there, or what is there is no tokeniser of this kind.
        """
        folder = Path(folder)
        names = [VOCAB, MERGES] if (folder / VOCAB).exists() else [WHOLE]
        what = f"{folder} ({', '.join(names)})"
        try:
            texts = [(folder / name).read_text(encoding="utf-8") for name in names]
            vocab, merges = _whole(*texts) if names == [WHOLE] else _pair(*texts)
            return cls(vocab, merges, size=size)
        except FileNotFoundError as error:
            raise UserError(f"{folder} has no {VOCAB} with {MERGES}, and no {WHOLE}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{what}: is not a tokeniser as GPT-2's ({error})") from error

    @classmethod
    def of(cls, tokenizer: BPETokenizer) -> GPT2Tokenizer:
        """Makes one of a vocabulary of our own, with its numbers: its padding is a special here."""
        return cls(*_whole(json.dumps(tokenizer.to_json()["tokenizer"])))

    def write(self, folder: str | os.PathLike) -> None:
        """Writes vocab.json and merges.txt into a folder, aside and renamed; for `read`."""
        numbered = dict(sorted(self._vocab.items(), key=lambda item: item[1]))
        lines = ["#version: 0.2", *self._merges, ""]
        for name, text in (VOCAB, json.dumps(numbered)), (MERGES, "\n".join(lines)):
            aside = Path(folder) / f"{name}.incomplete"
            aside.write_text(text, encoding="utf-8")
            aside.replace(Path(folder) / name)

    @property
    def size(self) -> int:
        """Tokens of the network."""
        return self._size

    @property
    def unwritten(self) -> tuple[int, ...]:
        """Specials but for the end, and the tokens that the network has beyond the vocabulary."""
        specials = {*self.specials.values()} - {*self.ends}
        return (*sorted(specials), *range(self._inner.size, self._size))

    @property
    def ends(self) -> tuple[int, ...]:
        """`<|endoftext|>`, if the vocabulary has it."""
        return (self.specials[END],) if END in self.specials else ()

    def encode(self, text: str) -> Int[np.ndarray, " t"]:
        """Returns the tokens of a text, never a special one."""
        return self._inner.encode(text)

    def to_bytes(self, tokens: Tokens) -> bytes:
        """Returns the bytes; specials are none, nor what lies beyond the vocabulary."""
        numbers = np.asarray(tokens, np.int64)
        beyond = (numbers >= self._inner.size) & (numbers < self._size)
        return self._inner.to_bytes(numbers[~beyond])

    def to_json(self) -> dict[str, Any]:
        """Returns the vocabulary, the merges and the size."""
        return {
            "kind": "gpt2", "vocab": self._vocab, "merges": self._merges, "size": self._size
        }  # fmt: skip


def _joined(merge: str) -> str:
    first, second = merge.split(" ")
    return first + second


def _pair(vocab: str, merges: str) -> tuple[dict[str, int], list[str]]:
    """Parses vocab.json and merges.txt; a merge may begin with # itself."""
    lines = merges.split("\n")
    return json.loads(vocab), [line for line in lines if line and not line.startswith("#version")]


def _whole(text: str) -> tuple[dict[str, int], list[str]]:
    """Parses tokenizer.json; raises ValueError where it does what GPT-2's does not."""
    whole = json.loads(text)
    model, before, added = whole["model"], whole["pre_tokenizer"], whole["added_tokens"]
    if (model["type"], before["type"], whole["normalizer"]) != ("BPE", "ByteLevel", None):
        raise ValueError("it is no byte-level BPE")
    if before["add_prefix_space"] or not before["use_regex"]:
        raise ValueError("it splits texts in another way")
    for token in added:
        if not token["special"]:
            raise ValueError(f"{token['content']!r} is added to the vocabulary, and not special")
    vocab = model["vocab"] | {token["content"]: token["id"] for token in added}
    # Merges are "t h" or ["t", "h"], as versions differ.
    return vocab, [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]


def _described(
    vocab: Mapping[str, int], merges: Sequence[str], specials: Mapping[str, int]
) -> dict[str, Any]:
    """Writes the tokeniser in the format of Hugging Face's `tokenizers`."""
    byte_level = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True
    }  # fmt: skip
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": i, "content": name, **plain, "special": True} for name, i in specials.items()]
    model = {"type": "BPE", "vocab": vocab, "merges": merges}
    return {
        "added_tokens": added, "normalizer": None, "pre_tokenizer": byte_level,
        "post_processor": None, "decoder": byte_level, "model": model,
    }  # fmt: skip
