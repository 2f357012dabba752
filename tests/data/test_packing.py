"""Laws of packing: nothing is lost, nothing overlaps, little is wasted, and all is repeatable."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl.data import packing
from jaxdl.data.packing import first_fit, lay_out
from jaxdl.errors import UserError

quickly = settings(max_examples=60, deadline=None)
sizes_of_two_sides = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), max_size=40)


@given(sizes=sizes_of_two_sides, seed=st.sampled_from([None, 0, 5]))
@quickly
def test_every_item_is_in_one_row_and_every_row_holds_its_items(sizes, seed):
    sizes = np.array(sizes, np.int64).reshape(-1, 2)
    rows = first_fit(sizes, (11, 9), seed=seed)
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    assert all((sizes[row].sum(0) <= (11, 9)).all() for row in rows)
    assert rows == first_fit(sizes, (11, 9), seed=seed)


def test_an_item_goes_into_the_first_row_with_room_longest_first():
    sizes = np.array([[2], [6], [5], [4], [3]])
    assert first_fit(sizes, (10,), seed=None) == [[1, 3], [2, 4, 0]]


def test_rows_are_nearly_full_and_other_seeds_make_others(monkeypatch):
    sizes = np.random.default_rng(0).integers(3, 30, (3000, 2))
    rows = first_fit(sizes, (128, 128), seed=0)
    fewest = sizes.sum(0).max() / 128
    assert len(rows) < 1.06 * fewest
    assert first_fit(sizes, (128, 128), seed=1) != rows
    # Small windows are what makes a longer set no slower an item; they cost a few rows.
    monkeypatch.setattr(packing, "WINDOW", 100)
    windowed = first_fit(sizes, (128, 128), seed=None)
    assert all(row[0] // 100 == item // 100 for row in windowed for item in row)


def test_an_item_larger_than_a_row_is_named():
    with pytest.raises(UserError, match=r"sequence 2 has 3\+12 tokens.*--length of 12"):
        first_fit(np.array([[3, 3], [3, 12]]), (10, 10), seed=None)


def test_sequences_stand_side_by_side_in_their_segments():
    sequences = [np.array(x, np.int32) for x in ([7, 8], [300], [9, 9, 9])]
    tokens, segments = lay_out([[2, 0], [1]], sequences, 6)
    assert tokens.tolist() == [[9, 9, 9, 7, 8, 0], [300, 0, 0, 0, 0, 0]]
    assert segments.tolist() == [[1, 1, 1, 2, 2, 0], [1, 0, 0, 0, 0, 0]]
    assert (tokens.dtype, segments.dtype) == (np.uint16, np.uint8)
