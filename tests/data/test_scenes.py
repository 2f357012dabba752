"""Scenes: functions of their number, as their captions say, without what is held out."""

import collections
import pickle
import re

import numpy as np
import pytest

from jaxdl.data import digit_scenes, digits
from jaxdl.data.scenes import (
    ARRANGEMENTS,
    COLORS,
    COLUMNS,
    NUMBERS,
    ROWS,
    THINGS,
    Scenes,
    is_held_out,
)

SIDE, COUNT = 8, 600


@pytest.fixture(scope="module")
def data():
    return digit_scenes(digits(), side=SIDE, count=COUNT, test=300, seed=3)


@pytest.fixture(scope="module")
def train(data):
    return data.train.pictures


def cells_of(picture):
    """Cuts a picture into its cells, {(row, column): (side, side, rgb)}."""
    return {
        (r, c): picture[r * SIDE : (r + 1) * SIDE, c * SIDE : (c + 1) * SIDE]
        for r in range(ROWS)
        for c in range(COLUMNS)
    }


def test_a_scene_is_a_function_of_seed_stream_and_number(train):
    again = pickle.loads(pickle.dumps(train))
    for i in (0, 7, COUNT - 1):
        assert again.scene(i) == train.scene(i)
        np.testing.assert_array_equal(again.picture(i), train.picture(i))
    shared = {"things": train.things, "count": COUNT}
    for seed, stream in ((4, 0), (3, 1)):
        other = Scenes(train.images, train.labels, **shared, seed=seed, stream=stream)
        same = sum(other.scene(i) == train.scene(i) for i in range(100))
        assert same < 5
    assert len({train.caption(i) for i in range(100)}) > 90


def test_the_largest_seed_has_streams_of_its_own(train):
    shared = {"things": train.things, "count": 9, "seed": 2**32 - 1}
    a, b = (Scenes(train.images, train.labels, **shared, stream=n) for n in (0, 1))
    assert [a.caption(i) for i in range(9)] != [b.caption(i) for i in range(9)]


def test_the_picture_is_as_the_caption_says(data):
    """Reads captions by rules of its own."""
    word = rf"a ({'|'.join(COLORS)}) ({'|'.join(NUMBERS)})"
    for scenes, split in (
        (data.train.pictures, data.digits.train),
        (data.seen, data.digits.test),
        (data.unseen, data.digits.test),
    ):
        arrays = split.arrays
        real = {digit: arrays["image"][arrays["label"] == digit][..., 0] for digit in range(10)}
        for i in range(150):
            caption, cells = scenes.caption(i), cells_of(scenes.picture(i))
            inked = {place for place, cell in cells.items() if cell.any()}
            told = re.findall(word, caption)
            assert len(told) == len(inked) in (1, 2, 3)
            places = sorted(inked)  # from left to right, or from top to bottom
            if " right of " in caption or " below " in caption:
                places.reverse()
            for (color, number), place in zip(told, places, strict=True):
                rgb = np.array(COLORS[color], bool)
                assert not cells[place][..., ~rgb].any()
                greys = cells[place][..., rgb]
                assert (greys == greys[..., :1]).all()
                digit = NUMBERS.index(number)
                assert (real[digit] == greys[..., 0]).all((1, 2)).any()
            (r, c), (y, x) = places[0], places[-1]
            if "left of" in caption or "right of" in caption:
                assert (y, abs(x - c)) == (r, 1)
            elif "above" in caption or "below" in caption:
                assert (abs(y - r), x) == (1, c)
            elif "in a row" in caption:
                assert {place[0] for place in inked} == {r}
            elif " at the " in caption:
                row, column = caption.split()[-2:]
                assert (r, c) == (
                    ["top", "bottom"].index(row), ["left", "middle", "right"].index(column)
                )  # fmt: skip
            else:
                assert re.fullmatch(word, caption)


def test_what_is_held_out_is_never_trained_on_and_all_else_is(data):
    held_out = {thing for thing in THINGS if is_held_out(thing)}
    assert len(held_out) == 10
    assert len(THINGS) == 60
    for part in (0, 1):  # every digit and every colour is among what is trained on
        assert {t[part] for t in held_out} == {t[part] for t in THINGS}
        assert {t[part] for t in THINGS if t not in held_out} == {t[part] for t in THINGS}
    things = lambda scenes: {t for i in range(len(scenes)) for t in scenes.scene(i).things}  # noqa: E731
    assert things(data.train.pictures) == set(THINGS) - held_out
    assert things(data.seen) == set(THINGS) - held_out
    assert things(data.unseen) == held_out


def test_everything_occurs(train):
    scenes = [train.scene(i) for i in range(COUNT)]
    counts = collections.Counter(len(scene.things) for scene in scenes)
    assert all(abs(counts[n] - COUNT / 3) < 60 for n in (1, 2, 3))
    assert {scene.arrangement for scene in scenes} == set(ARRANGEMENTS)
    anywhere = [scene.cells for scene in scenes if " at the " not in scene.caption]
    assert set(anywhere) == {
        cells for a in ARRANGEMENTS if "at the" not in a.words for cells in a.placements
    }


@pytest.mark.parametrize("arrangement", ARRANGEMENTS, ids=lambda a: a.words)
def test_no_two_placements_have_the_same_cells(arrangement):
    sets = {frozenset(cells) for cells in arrangement.placements}
    assert len(sets) == len(arrangement.placements)
    for cells in arrangement.placements:
        assert len(set(cells)) == arrangement.count
        assert all(0 <= r < ROWS and 0 <= c < COLUMNS for r, c in cells)
