"""Pairs of sentences: a source and what it is to be translated into, as strings.

What is held out is told in each dataset's docstring, because a number is worth its split.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxdl.data.text import read_text
from jaxdl.data.tfds import prepared
from jaxdl.errors import UserError

HELD_OUT = 20  # one date, or one line, in twenty is tested on, and another one validates

# Languages whose dates tell by their signs what is day and what is month. Croatian is missing: its
# "listopad" is October, where for Poles and Czechs it is November.
LOCALES = (
    "ca", "cs", "da", "de", "el", "en_GB", "en_US", "es", "et", "fi", "fr", "hu", "id", "it", "ja",
    "ko", "lt", "nb", "nl", "pl", "pt", "ro", "ru", "sv", "tr", "uk", "zh",
)  # fmt: skip
# Babel's short form is missing: 03/04/21 is the third of April in Paris, and no day of April in
# New York.
FORMS = ("medium", "long", "full")
FIRST_DAY, LAST_DAY = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)


class Pair(NamedTuple):
    """A sentence and its translation."""

    source: str
    target: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairDataset:
    """Pairs to train on, to choose by, and to report."""

    name: str  # "dates", "files:PATH", "multi30k-de-en"
    train: Sequence[Pair]
    validation: Sequence[Pair]
    test: Sequence[Pair]

    def __post_init__(self):
        for split in ("train", "validation", "test"):
            if not getattr(self, split):
                raise UserError(f"{self.name}: there are no pairs in the {split} split")

    def map(self, function: Callable[[str], str]) -> PairDataset:
        """Applies a function to every string of either side, such as `str.lower`."""
        changed = {
            split: [Pair(*map(function, pair)) for pair in getattr(self, split)]
            for split in ("train", "validation", "test")
        }
        return dataclasses.replace(self, **changed)


def dates(*, train: int = 40_000, held_out: int = 2_000, seed: int = 0) -> PairDataset:
    """Writes dates in 27 locales and 3 forms by Babel, each beside its ISO form (ISO 8601).

        Pair("jeudi 4 mars 2021", "2021-03-04")

    Days of 1900 to 2099, the locale and the form are drawn uniformly. A day is held out by the
    CRC-32 of its ISO form: one in twenty is tested on, one in twenty validates, whatever the seed,
    so no *date* of a held-out pair is in a training pair, in no language. Equal seeds give equal
    pairs, with the same names of months: they are Babel's, which follows CLDR.

    Args:
      train: pairs to train on; some may be drawn twice.
      held_out: pairs to validate with, and pairs to test with.
      seed: of the draws.
    """
    from babel.dates import format_date

    span = (LAST_DAY - FIRST_DAY).days + 1
    split: tuple[list[datetime.date], ...] = ([], [], [])  # test, validation, train
    for day in map(FIRST_DAY.__add__, map(datetime.timedelta, range(span))):
        split[min(zlib.crc32(day.isoformat().encode()) % HELD_OUT, 2)].append(day)

    def draw(days: Sequence[datetime.date], count: int, stream: int) -> list[Pair]:
        # Raw bits of Philox, which NumPy promises for ever.
        key = np.array([seed % 2**64, stream], np.uint64)
        chosen = np.random.Philox(key=key).random_raw(3 * count).reshape(count, 3)
        chosen = chosen % np.array([len(days), len(LOCALES), len(FORMS)], np.uint64)
        return [
            Pair(format_date(days[d], FORMS[f], locale=LOCALES[n]), days[d].isoformat())
            for d, n, f in chosen.tolist()
        ]

    return PairDataset(
        name="dates",
        test=draw(split[0], held_out, 0),
        validation=draw(split[1], held_out, 1),
        train=draw(split[2], train, 2),
    )


def pair_files(source: str | os.PathLike, target: str | os.PathLike) -> PairDataset:
    """Reads two line-aligned files in UTF-8: line n of one is the translation of line n.

    Of twenty lines the first is tested on, the second validates, the others train. Pairs with an
    empty side are left out. A repeated pair is one, so no held-out pair is trained on; a side of it
    may be, in another pair.

    Raises UserError for a file that is missing, empty or not UTF-8, for counts of lines that
    differ, and where too few pairs are left.
    """
    sides = [read_text(path).split("\n") for path in (source, target)]
    sides = [lines[:-1] if not lines[-1] else lines for lines in sides]
    counts = [len(lines) for lines in sides]
    if counts[0] != counts[1]:
        raise UserError(
            f"{source} has {counts[0]:,} lines and {target} has {counts[1]:,}: "
            "line n of one must be the translation of line n of the other"
        )
    stripped = zip(*(map(str.strip, lines) for lines in sides), strict=True)
    pairs = list(dict.fromkeys(Pair(*pair) for pair in stripped if all(pair)))
    if len(pairs) < HELD_OUT:
        raise UserError(f"{source}: {len(pairs)} different pairs are too few; {HELD_OUT} will do")
    return PairDataset(
        name=f"files:{source}",
        test=pairs[0::HELD_OUT],
        validation=pairs[1::HELD_OUT],
        train=[pair for n, pair in enumerate(pairs) if n % HELD_OUT > 1],
    )


def multi30k(
    source: str = "de",
    target: str = "en",
    *,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
) -> PairDataset:
    """Reads Multi30k (Elliott et al. 2016, arXiv:1605.00459), captions in German and English.

    29,000 pairs train, 1,014 validate, and the 1,000 of test2016 (Flickr) test: task 1, raw text,
    as the repository multi30k/dataset has it. Prepared once by `jaxdl.data.multi30k`. Raises
    UserError for another language, and where `prepared` does.
    """
    import jaxdl.data.multi30k as builder  # TFDS knows a dataset whose class is defined

    for language in (source, target):
        if language not in builder.LANGUAGES:
            known = " and ".join(builder.LANGUAGES)
            raise UserError(f"Multi30k has {known} here, not {language!r}")
    with prepared("multi30k", data_dir=data_dir, manual_dir=manual_dir) as opened:
        splits = {
            split: [
                Pair(example[source].decode(), example[target].decode())
                for example in opened.as_data_source(split=split)
            ]
            for split in ("train", "validation", "test")
        }
    return PairDataset(name=f"multi30k-{source}-{target}", **splits)
