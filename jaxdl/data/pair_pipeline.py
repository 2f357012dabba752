"""Pairs as batches of packed rows, under the contract of `jaxdl.data.pipeline`.

Row m holds several pairs, the i-th source in segment i of one side and the i-th target in segment
i of the other. A target of n tokens is read as "<s> y_1 ... y_n" and predicted as
"y_1 ... y_n </s>", so it takes n + 1 places. A batch is, all int32:

    source, source_segments   [b s]   what is translated
    tokens, segments          [b t]   what the decoder reads
    targets                   [b t]   what it predicts
    mask                      [b t]   bool: what counts

A row's composition is drawn once; the order of rows anew each epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxdl.data.bpe import BPETokenizer
from jaxdl.data.packing import first_fit, lay_out
from jaxdl.data.pairs import Pair
from jaxdl.data.pipeline import Resident
from jaxdl.types import Array, Batch

BEGIN, END = "<s>", "</s>"


class Encoded(NamedTuple):
    """Both sides of pairs as tokens, without begin and end."""

    sources: Sequence[Int[np.ndarray, " _"]]
    targets: Sequence[Int[np.ndarray, " _"]]


def joint_bpe(pairs: Iterable[Pair], *, size: int) -> BPETokenizer:
    """Learns one byte-pair encoding from both sides (Sennrich et al. 2016, arXiv:1508.07909).

    Names and numbers are then cut alike on both sides, and the network can embed both with one
    table. The specials "<s>" and "</s>" begin and end a target.
    """
    return BPETokenizer.train(
        (side for pair in pairs for side in pair), size=size, specials=(BEGIN, END)
    )


def encode_pairs(pairs: Iterable[Pair], tokenizer: BPETokenizer) -> Encoded:
    """Returns the tokens of both sides."""
    sides = zip(*pairs, strict=True)
    return Encoded(*([tokenizer.encode(text) for text in side] for side in sides))


def fitting(encoded: Encoded, length: int) -> Encoded:
    """Leaves out the pairs of which a side, with its end, is longer than `length`."""
    kept = [pair for pair in zip(*encoded, strict=True) if max(map(len, pair)) < length]
    return Encoded([source for source, _ in kept], [target for _, target in kept])


def longest(encoded: Encoded) -> tuple[int, int]:
    """Returns the tokens of the longest source and target, ends counted: what a row must hold."""
    source, target = (1 + max(map(len, side)) for side in encoded)
    return source, target


def row_lengths(encoded: Encoded, length: int) -> tuple[int, int]:
    """Returns s and t: `length` for the side with more tokens, for the other in proportion.

    So both sides of a row are full at about the same number of pairs. Both are multiples of 8, and
    hold the longest pair.
    """
    totals = [sum(len(tokens) + 1 for tokens in side) for side in encoded]
    sizes = (length * total / max(totals) for total in totals)
    held = map(max, sizes, longest(encoded))
    source, target = (-(-int(size) // 8) * 8 for size in held)
    return source, target


class PackedPairs(Resident):
    """Packed rows of pairs, on the device.

    Training (a seed): pairs are packed in an order drawn from the seed. Evaluation (`seed=None`):
    one pass in which each target's token counts once, at any batch size.

    `lengths` are s and t, see `row_lengths`. Raises UserError for a pair that is longer, naming it.
    """

    def __init__(
        self,
        encoded: Encoded,
        batch_size: int,
        *,
        lengths: tuple[int, int],
        specials: Mapping[str, int],
        seed: int | None,
        shard: tuple[int, int] | None = None,
    ):
        begin, end = [np.array([specials[name]], np.int32) for name in (BEGIN, END)]
        read = [np.concatenate([begin, target]) for target in encoded.targets]
        predicted = [np.concatenate([target, end]) for target in encoded.targets]
        # A source has its end too: an empty one could not be attended to.
        sources = [np.concatenate([source, end]) for source in encoded.sources]
        sizes = np.array([[len(a), len(b)] for a, b in zip(sources, read, strict=True)])
        rows = first_fit(sizes, lengths, seed=seed)
        source, source_segments = lay_out(rows, sources, lengths[0])
        tokens, segments = lay_out(rows, read, lengths[1])
        super().__init__(
            {
                "source": source, "source_segments": source_segments, "tokens": tokens,
                "segments": segments, "targets": lay_out(rows, predicted, lengths[1])[0],
            },
            batch_size, seed=seed, shard=shard,
        )  # fmt: skip
        self.lengths = lengths
        self.pairs = len(sources)
        # The share of places that a token stands in, by side.
        self.filled = {side: float((self.arrays[side] > 0).mean()) for side in ("source", "tokens")}

    def assemble(self, arrays: Mapping[str, Array], batch: Mapping[str, Array]) -> Batch:
        """Takes rows out of the arrays and says what counts; pure, for the compiled step."""
        rows: dict[str, Any] = dict(super().assemble(arrays, batch))
        counts = rows.pop("mask", jnp.ones(rows["tokens"].shape[0], bool))
        rows = {name: array.astype(jnp.int32) for name, array in rows.items()}
        return rows | {"mask": counts[:, None] & (rows["segments"] > 0)}
