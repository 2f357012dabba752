"""What a language model has to beat: compression by gzip, and counting characters.

Both are in bits a character of the held-out text, as `bits_per_character` makes of a loss.
"""

from __future__ import annotations

import gzip
import math

import numpy as np
from jaxtyping import Float, Int


def bits_per_character(nats_per_token: float, *, tokens: int, characters: int) -> float:
    """Computes the bits a character of a text whose `tokens` cost so many nats each.

        bits = nats / ln 2 * tokens / characters

    Counted in UTF-8 bytes instead of characters, it is the bits a byte. With tokens of more than a
    character this is the only fair comparison: a perplexity a token falls as tokens get shorter.
    """
    return nats_per_token / math.log(2) * tokens / characters


def gzip_bits(text: str) -> float:
    """Compresses a text in UTF-8 by gzip at its best, and returns the bits a character.

    Header and checksum (18 bytes) are counted, as is learning the text from nothing: gzip looks
    back 32 KiB, so that a training text before it would change next to nothing.
    """
    return 8 * len(gzip.compress(text.encode(), 9, mtime=0)) / len(text)


def markov_bits(train: str, test: str, *, order: int = 4) -> float:
    """Computes the bits a character of `test` under a Markov model of characters of `train`.

    Interpolated Witten-Bell smoothing (Witten and Bell 1991; Chen and Goodman 1999, section 2.3):

        P_k(c | h) = (n(h c) + T(h) P_{k-1}(c | h')) / (n(h) + T(h))

    where h are the k characters before c, h' is h without its first, n counts in `train`, and T(h)
    is the number of different characters seen after h. P_{-1} is uniform over the characters of
    `train` and one more, which stands for all others. The first character of `test` is not
    predicted, as by a network it is not.
    """
    alphabet, symbols = np.unique(_codes(train), return_inverse=True)
    known = len(alphabet)
    codes = _codes(test)
    place = np.minimum(np.searchsorted(alphabet, codes), known - 1)
    tested = np.where(alphabet[place] == codes, place, known)
    # Contexts are numbered jointly in both texts: context k + 1 is (character, context k).
    both = np.concatenate([symbols, tested])
    cut = len(symbols)
    is_test = np.arange(len(both)) >= cut
    probability = np.full(len(tested), 1 / (known + 1))
    context = np.zeros(len(both), np.int64)
    for k in range(order + 1):
        # Training counts only what lies whole in it; the test text's first k have no context.
        valid = np.arange(len(both)) >= np.where(is_test, cut + k, k)
        probability = _interpolate(context, both, valid, is_test, probability)
        behind = np.concatenate([np.full(k + 1, known), both[: -(k + 1)]])
        context = np.unique(context * (known + 1) + behind, return_inverse=True)[1]
    return float(-np.log2(probability[1:]).mean())


def _interpolate(
    context: Int[np.ndarray, " n"],
    symbols: Int[np.ndarray, " n"],
    valid: np.ndarray,
    is_test: np.ndarray,
    lower: Float[np.ndarray, " m"],
) -> Float[np.ndarray, " m"]:
    """Mixes the counts after each context with the probabilities of the order below."""
    grams = np.unique(context * (symbols.max() + 1) + symbols, return_inverse=True)[1]
    trained = valid & ~is_test
    n_gram = np.bincount(grams[trained], minlength=grams.max() + 1)
    n_context = np.bincount(context[trained], minlength=context.max() + 1)
    owner = np.zeros(len(n_gram), np.int64)  # of each gram, its context
    owner[grams] = context
    different = np.bincount(owner[n_gram > 0], minlength=len(n_context))
    here, after = context[is_test], grams[is_test]
    seen = valid[is_test] & (n_context[here] > 0)
    total = np.where(seen, n_context[here] + different[here], 1)
    return np.where(seen, (n_gram[after] + different[here] * lower) / total, lower)


def _codes(text: str) -> Int[np.ndarray, " n"]:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64)
