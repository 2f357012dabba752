"""Baselines against their formulas, written plainly."""

import gzip
import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from jaxdl.data import bits_per_character, gzip_bits, markov_bits

RNG = np.random.default_rng(2)
TRAIN = "".join(RNG.choice(list("abcé "), 300, p=[0.4, 0.2, 0.2, 0.1, 0.1]))
TEST = "a日" + "".join(RNG.choice(list("abcé x"), 70))


def plain_markov_bits(train, test, order):
    """Witten-Bell, one character at a time."""
    counts = defaultdict(Counter)
    for k in range(order + 1):
        for i in range(k, len(train)):
            counts[train[i - k : i]][train[i]] += 1
    alphabet = set(train)
    known = "".join(c if c in alphabet else "?" for c in test)

    def probability(c, h):
        after = counts[h]
        lower = 1 / (len(alphabet) + 1) if not h else probability(c, h[1:])
        n, different = sum(after.values()), len(after)
        return (after[c] + different * lower) / (n + different) if n else lower

    bits = [
        -math.log2(probability(known[i], known[max(0, i - order) : i])) for i in range(1, len(test))
    ]
    return sum(bits) / len(bits)


@pytest.mark.parametrize("order", [0, 1, 2, 4])
def test_markov_is_the_formula(order):
    expected = plain_markov_bits(TRAIN, TEST, order)
    assert markov_bits(TRAIN, TEST, order=order) == pytest.approx(expected, rel=1e-9)


def test_markov_learns_what_there_is_to_learn():
    assert markov_bits("abcd" * 500, "abcd" * 20, order=2) < 0.05
    uniform = "".join(RNG.choice(list("abcdefgh"), 20_000))
    assert markov_bits(uniform[:18_000], uniform[18_000:], order=0) == pytest.approx(3, abs=0.01)


def test_gzip_is_what_its_file_takes():
    text = "größer " * 40
    compressed = gzip.compress(text.encode(), 9)
    assert gzip_bits(text) == 8 * len(compressed) / len(text)
    assert gzip.decompress(compressed).decode() == text
    assert gzip_bits(text) < gzip_bits(text[:70])


def test_bits_a_character_are_those_of_the_whole_text():
    # A uniform guess among 8 tokens, of which 10 spell 25 characters.
    assert bits_per_character(math.log(8), tokens=10, characters=25) == pytest.approx(3 * 10 / 25)
