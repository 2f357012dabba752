"""Questions and answers, and rows of them for a causal language model.

A question with its answer is a `Pair`, so both kinds of network can learn them: an encoder-decoder
as it learns translation, a language model from rows in which only the answer counts.
"""

from __future__ import annotations

import datetime
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxdl.data.order import permutation
from jaxdl.data.packing import first_fit, lay_out
from jaxdl.data.pair_pipeline import BEGIN, END, Encoded
from jaxdl.data.pairs import FIRST_DAY, HELD_OUT, LAST_DAY, Pair, PairDataset
from jaxdl.data.pipeline import Resident
from jaxdl.data.text import read_json_lines
from jaxdl.errors import UserError
from jaxdl.types import Array, Batch

LARGEST = 99  # term of a sum
SHIFTS = {"the day after": 1, "the day before": -1, "a week after": 7, "a week before": -7}


def questions(*, seed: int = 0) -> PairDataset:
    """Asks for all sums and differences of 0 to 99, and for days near 20,000 others.

        Pair("What is 47 + 85?", "132")
        Pair("Which day is the day after 2021-02-28?", "2021-03-01")

    A question is held out by the CRC-32 of its text: one in twenty is tested on, one in twenty
    validates, so none of them is trained on. The seed draws which days are asked for.
    """
    splits: tuple[list[Pair], ...] = ([], [], [])  # test, validation, train
    for pair in (*_sums(), *_days(20_000, seed)):
        splits[min(zlib.crc32(pair.source.encode()) % HELD_OUT, 2)].append(pair)
    test, validation, train = splits
    return PairDataset(name="questions", train=train, validation=validation, test=test)


def _sums() -> Iterator[Pair]:
    for a in range(LARGEST + 1):
        for b in range(LARGEST + 1):
            yield Pair(f"What is {a} + {b}?", str(a + b))
            yield Pair(f"What is {a} - {b}?", str(a - b))


def _days(count: int, seed: int) -> Iterator[Pair]:
    days = (LAST_DAY - FIRST_DAY).days - 14  # so that a week to either side is in range
    asked = [(day, shift) for day in range(days) for shift in SHIFTS]
    for n in permutation(len(asked), seed=seed, epoch=0)[:count].tolist():
        offset, shift = asked[n]
        day = FIRST_DAY + datetime.timedelta(7 + offset)
        answer = day + datetime.timedelta(SHIFTS[shift])
        yield Pair(f"Which day is {shift} {day.isoformat()}?", answer.isoformat())


def question_file(path: str | os.PathLike) -> PairDataset:
    """Reads a file of JSON lines, {"prompt": TEXT, "answer": TEXT} each.

    Of twenty lines the first is tested on, the second validates, the others train; a repeated line
    is one. Raises UserError, with the number of the line, for one that is anything else, and where
    too few are left.
    """
    example = {"prompt": "...", "answer": "..."}
    different = list(dict.fromkeys(Pair(*texts) for _, texts in read_json_lines(path, example)))
    if len(different) < HELD_OUT:
        raise UserError(f"{path}: {len(different)} different lines are too few; {HELD_OUT} will do")
    return PairDataset(
        name=f"questions:{path}",
        test=different[0::HELD_OUT],
        validation=different[1::HELD_OUT],
        train=[pair for n, pair in enumerate(different) if n % HELD_OUT > 1],
    )


def question_prompt(
    tokens: Int[np.ndarray, " _"], specials: Mapping[str, int]
) -> Int[np.ndarray, " _"]:
    """Returns what a language model is given to answer a question: its tokens, then "<s>"."""
    return np.append(tokens, np.int32(specials[BEGIN])).astype(np.int32)


def fitting_questions(encoded: Encoded, length: int) -> Encoded:
    """Leaves out what a row of `length` does not hold: the question, its "<s>", and the answer."""
    kept = [pair for pair in zip(*encoded, strict=True) if sum(map(len, pair)) < length]
    return Encoded([question for question, _ in kept], [answer for _, answer in kept])


class PackedQuestions(Resident):
    """Packed rows "question <s> answer </s>" for a causal language model; all int32 but the mask.

        tokens, segments   [b t]   what it reads
        targets            [b t]   the token after each
        mask               [b t]   bool: where the target is of the answer or its end

    Otherwise as `jaxdl.data.pair_pipeline.PackedPairs`.
    """

    def __init__(
        self,
        encoded: Encoded,
        batch_size: int,
        *,
        length: int,
        specials: Mapping[str, int],
        seed: int | None,
        shard: tuple[int, int] | None = None,
    ):
        end = np.array([specials[END]], np.int32)
        pairs = [
            (question_prompt(question, specials), np.concatenate([answer, end]))
            for question, answer in zip(*encoded, strict=True)
        ]
        whole = [np.concatenate(pair) for pair in pairs]
        # Of the sequence one further on, what is asked stands in the first places.
        counted = [np.arange(1, len(w)) >= len(p) for w, (p, _) in zip(whole, pairs, strict=True)]
        rows = first_fit(np.array([[len(w) - 1] for w in whole]), (length,), seed=seed)
        tokens, segments = lay_out(rows, [w[:-1] for w in whole], length)
        targets, _ = lay_out(rows, [w[1:] for w in whole], length)
        answers, _ = lay_out(rows, [c.astype(np.int32) for c in counted], length)
        super().__init__(
            {"tokens": tokens, "segments": segments, "targets": targets, "answers": answers},
            batch_size, seed=seed, shard=shard,
        )  # fmt: skip
        self.length = length
        self.pairs = len(pairs)
        self.filled = float((segments > 0).mean())  # the share of places that a token stands in

    def assemble(self, arrays: Mapping[str, Array], batch: Mapping[str, Array]) -> Batch:
        """Takes rows out of the arrays and says what counts; pure, for the compiled step."""
        rows: dict[str, Any] = dict(super().assemble(arrays, batch))
        counts = rows.pop("mask", jnp.ones(rows["tokens"].shape[0], bool))
        answers = rows.pop("answers") > 0
        rows = {name: array.astype(jnp.int32) for name, array in rows.items()}
        return rows | {"mask": counts[:, None] & answers}
