"""Byte-pair encoding, trained offline by Hugging Face's `tokenizers`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxdl.data.codec import Tokenizer, Tokens, joined, utf8


class BPETokenizer(Tokenizer):
    """Byte-pair encoding over bytes (Sennrich et al. 2016, arXiv:1508.07909), as GPT-2 has it.

    By Hugging Face's `tokenizers`. Token 0 is padding, then come the `specials` of its training
    (for example the ends of a sentence), which no text is encoded into, then all bytes, then
    merges. Specials, as padding, stand for no text.
    """

    def __init__(self, tokenizer: dict[str, Any]):
        import tokenizers

        self._json = tokenizer
        try:
            self._inner = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
        except Exception as error:  # the library raises this very class
            raise ValueError(str(error)) from error
        self._inner.encode_special_tokens = True  # the text "<pad>" is five signs, not padding
        added = self._inner.get_added_tokens_decoder()
        self.specials = {token.content: number for number, token in added.items()}
        numbers = self._inner.get_vocab(with_added_tokens=True)
        self._bytes = [
            b"" if name in self.specials else bytes(_BYTES[sign] for sign in name)
            for name in sorted(numbers, key=numbers.__getitem__)
        ]

    @classmethod
    def train(
        cls, texts: str | Iterable[str], *, size: int, specials: Sequence[str] = ()
    ) -> BPETokenizer:
        """Learns merges from a text, or several, until there are `size` tokens, offline.

        Raises ValueError where `size` has no room for the 256 bytes, padding and specials. Specials
        are written "<name>", "</name>" or "<|name|>", which no merge can spell: none joins a letter
        to a sign.
        """
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers

        for name in specials:
            if not re.fullmatch(r"<[/|]?\w+\|?>", name):
                raise ValueError(f"a special token is written <name> or </name>, not {name!r}")
        if size < 257 + len(specials):
            raise ValueError(f"byte-pair encoding needs {257 + len(specials)} tokens, not {size}")
        texts = [texts] if isinstance(texts, str) else texts
        inner = tokenizers.Tokenizer(models.BPE())
        # Attributes that the stubs of the library know only as read.
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
        inner.decoder = decoders.ByteLevel()  # pyright: ignore
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<pad>", *specials],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator((piece for text in texts for piece in _cut(text)), trainer)
        return cls(json.loads(inner.to_str()))

    @property
    def size(self) -> int:
        """Tokens, padding and specials counted; less than asked for where a text had no more."""
        return len(self._bytes)

    def encode(self, text: str) -> Int[np.ndarray, " t"]:
        """Returns the tokens of a text, never a special one."""
        utf8(text)
        encoded = self._inner.encode_batch_fast(_cut(text), add_special_tokens=False)
        return np.array([token for piece in encoded for token in piece.ids], np.int32)

    def to_bytes(self, tokens: Tokens) -> bytes:
        """Returns the bytes; padding and specials are none."""
        return joined(tokens, self._bytes)

    def to_json(self) -> dict[str, Any]:
        """Returns the file format of Hugging Face's `tokenizers`."""
        return {"kind": "bpe", "tokenizer": self._json}


def _cut(text: str, size: int = 10_000) -> list[str]:
    """Cuts a text where no token spans the cut, between a sign and a line feed.

    The library reads many short texts several times faster than a long one, and in threads.
    """
    return re.findall(rf"(?s).{{{size}}}.*?\S(?=\n)|.+", text)


def _byte_signs() -> dict[str, int]:
    """Returns the printable character by which GPT-2's BPE writes each byte, to that byte.

    Printable Latin-1 stands for itself; the n-th of the others is written as U+0100 + n.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [x for x in range(256) if x not in printable]
    return {chr(x): x for x in printable} | {chr(256 + n): x for n, x in enumerate(others)}


_BYTES = _byte_signs()
