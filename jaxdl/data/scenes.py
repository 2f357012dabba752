"""Scenes of coloured digits, and the sentences that say what is where.

A scene is a pure function of (seed, stream, number): nothing is stored, there are as many as one
asks for, and a run resumes by the number alone. It has one to three digits on a grid of two rows
of three cells:

    a green four                          anywhere
    a green four at the top left          there
    a red seven left of a blue two        in neighbouring cells, anywhere
    a red seven, a blue two and a green four in a row

One colour of each digit is held out (`is_held_out`): no scene to train on has it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

ROWS, COLUMNS = 2, 3
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# In the order of the hue, which grows by 60 degrees from one to the next.
COLORS = {
    "red": (1, 0, 0), "yellow": (1, 1, 0), "green": (0, 1, 0), "cyan": (0, 1, 1),
    "blue": (0, 0, 1), "magenta": (1, 0, 1),
}  # fmt: skip

Cell = tuple[int, int]  # row and column


class Thing(NamedTuple):
    """A digit, and the number of its colour in `COLORS`."""

    digit: int
    color: int

    def __str__(self) -> str:
        return f"a {list(COLORS)[self.color]} {NUMBERS[self.digit]}"


class Arrangement(NamedTuple):
    """How things lie, in words, and all the places that these words leave them."""

    words: str
    placements: tuple[tuple[Cell, ...], ...]  # each has the cells of the things, in their order

    @property
    def count(self) -> int:
        """How many things it has."""
        return len(self.placements[0])


class Scene(NamedTuple):
    """What a picture shows: things in the order of the caption, and the cell of each."""

    arrangement: Arrangement
    things: tuple[Thing, ...]
    cells: tuple[Cell, ...]

    @property
    def caption(self) -> str:
        """Says what is to be seen."""
        return self.arrangement.words.format(*self.things)


def _anywhere(words: str, *steps: Cell) -> Arrangement:
    """Makes the arrangement of things at these steps from a corner that lies anywhere."""
    height, width = (1 + max(step[axis] for step in steps) for axis in (0, 1))
    corners = itertools.product(range(ROWS - height + 1), range(COLUMNS - width + 1))
    return Arrangement(words, tuple(tuple((r + y, c + x) for y, x in steps) for r, c in corners))


ARRANGEMENTS = (
    _anywhere("{}", (0, 0)),
    *(
        Arrangement(f"{{}} at the {row} {column}", (((r, c),),))
        for r, row in enumerate(("top", "bottom"))
        for c, column in enumerate(("left", "middle", "right"))
    ),
    _anywhere("{} left of {}", (0, 0), (0, 1)),
    _anywhere("{} right of {}", (0, 1), (0, 0)),
    _anywhere("{} above {}", (0, 0), (1, 0)),
    _anywhere("{} below {}", (1, 0), (0, 0)),
    _anywhere("{}, {} and {} in a row", (0, 0), (0, 1), (0, 2)),
)
_BY_COUNT = tuple(tuple(a for a in ARRANGEMENTS if a.count == n) for n in (1, 2, 3))
THINGS = tuple(Thing(*pair) for pair in itertools.product(range(10), range(len(COLORS))))


def is_held_out(thing: Thing) -> bool:
    """Tells whether training never shows this digit in this colour: one colour a digit."""
    return thing.color == thing.digit % len(COLORS)


def every_phrase() -> Iterator[str]:
    """Yields captions that have, between them, every word in every place."""
    for thing, arrangement in itertools.product(THINGS, ARRANGEMENTS):
        yield arrangement.words.format(*[thing] * arrangement.count)


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Scenes by number, of the given things, drawn with the given pictures of digits.

    The number of things is uniform over one to three, then their arrangement, its placement, each
    thing, and the picture of each are uniform among what there is. Streams share no draw.
    """

    images: UInt8[np.ndarray, "n side side"]
    labels: Int[np.ndarray, " n"]
    _: dataclasses.KW_ONLY
    things: tuple[Thing, ...]
    count: int
    seed: int
    stream: int

    def __len__(self) -> int:
        return self.count

    @functools.cached_property
    def _of_digit(self) -> list[np.ndarray]:
        return [np.flatnonzero(self.labels == digit) for digit in range(10)]

    def _bits(self, i: int) -> list[int]:
        # NumPy promises the raw bits of Philox for ever, see `jaxdl.data.order`.
        key = np.array([self.seed | self.stream << 32, i], np.uint64)
        return np.random.Philox(key=key).random_raw(9).tolist()

    def scene(self, i: int) -> Scene:
        """Draws scene number i."""
        how_many, which, where, *each = self._bits(i)
        arrangements = _BY_COUNT[how_many % len(_BY_COUNT)]
        arrangement = arrangements[which % len(arrangements)]
        cells = arrangement.placements[where % len(arrangement.placements)]
        things = [self.things[bits % len(self.things)] for bits in each[: arrangement.count]]
        return Scene(arrangement, tuple(things), cells)

    def picture(self, i: int) -> UInt8[np.ndarray, "h w rgb"]:
        """Draws the picture of scene number i: digits in one colour each, on black."""
        side, scene, bits = self.images.shape[1], self.scene(i), self._bits(i)[6:]
        canvas = np.zeros((ROWS, side, COLUMNS, side, 3), np.uint8)
        for thing, (row, column), choice in zip(scene.things, scene.cells, bits, strict=False):
            pictures = self._of_digit[thing.digit]
            grey = self.images[pictures[choice % len(pictures)]]
            rgb = np.array(list(COLORS.values())[thing.color], np.uint8)
            canvas[row, :, column] = grey[..., None] * rgb
        return canvas.reshape(ROWS * side, COLUMNS * side, 3)

    def caption(self, i: int) -> str:
        """Says what picture number i shows."""
        return self.scene(i).caption
