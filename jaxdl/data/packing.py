"""Packing: short sequences of differing lengths, several to a row, so that rows are of one length.

A batch has one shape, so there is one program to compile, and next to nothing in it is padding.
Which tokens belong together is told by segments: 1, 2, ... in a row, and 0 where nothing stands.
Attention that stays within its segment makes of a packed row what its sequences give one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Integer

from jaxdl.data.order import permutation
from jaxdl.data.text_pipeline import smallest
from jaxdl.errors import UserError

WINDOW = 2048  # sequences that are packed among themselves, a row being sought among theirs


def first_fit(
    sizes: Int[np.ndarray, "n k"], capacity: Sequence[int], *, seed: int | None
) -> list[list[int]]:
    """Puts items with k sizes each into rows that hold `capacity` of each; returns items by row.

    First fit, longest first (Johnson 1973): each item goes into the first row with room for all of
    its sizes, within windows of WINDOW items. With a seed, windows are of items in random order,
    and rows too; without, they are of items as they come. Equal arguments give equal rows.

    Raises UserError, naming the item, where one is larger than an empty row.
    """
    rows: list[list[int]] = []
    order = np.arange(len(sizes)) if seed is None else permutation(len(sizes), seed=seed, epoch=0)
    limit = np.asarray(capacity)
    if (too_large := (sizes > limit).any(1)).any():
        item = int(too_large.argmax())
        raise UserError(
            f"sequence {item + 1} has {'+'.join(map(str, sizes[item]))} tokens, more than a row of"
            f" {'+'.join(map(str, capacity))}; choose a --length of {sizes.max()} or more"
        )
    for start in range(0, len(order), WINDOW):
        window = order[start : start + WINDOW]
        window = window[np.argsort(-sizes[window].max(1), kind="stable")]
        room = np.tile(limit, (len(window), 1))
        packed: list[list[int]] = []
        for item in window.tolist():
            # The first row that nothing is in has room, so there is always one.
            row = int((room[: len(packed) + 1] >= sizes[item]).all(1).argmax())
            if row == len(packed):
                packed.append([])
            packed[row].append(item)
            room[row] -= sizes[item]
        rows += packed
    return rows


def lay_out(
    rows: Sequence[Sequence[int]], sequences: Sequence[Int[np.ndarray, " _"]], length: int
) -> tuple[Integer[np.ndarray, "n t"], Integer[np.ndarray, "n t"]]:
    """Writes the sequences of each row side by side: tokens, and the segment that each is of.

    Both are of the narrowest type that holds them. A row's m-th sequence is its segment m; what is
    left over is token 0 in segment 0.
    """
    tokens = np.zeros((len(rows), length), np.int32)
    segments = np.zeros((len(rows), length), np.int32)
    for number, row in enumerate(rows):
        at = 0
        for segment, item in enumerate(row, 1):
            end = at + len(sequences[item])
            tokens[number, at:end] = sequences[item]
            segments[number, at:end] = segment
            at = end
    return tokens.astype(smallest(tokens)), segments.astype(smallest(segments))
