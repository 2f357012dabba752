"""Laws of beam search, on a network that is a table: the next token depends on the last two.

And on a causal language model, which is searched through its cache.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.beam import beam_search, length_penalty
from jaxdl.decode import generate, pad_prompts, row_keys
from jaxdl.models import TransformerLM
from jaxdl.sampling import greedy
from tests.parameters import random_params

V, STOP, LIMIT, B = 5, 1, 4, 3


def markov(table, carry, tokens):
    logits = table[carry["row"], carry["last"], tokens]
    return {"row": carry["row"], "last": tokens}, logits


@pytest.fixture(scope="module")
def table():
    # Different rows have different networks, so a row that is mistaken for another is noticed.
    return jnp.asarray(np.random.default_rng(3).normal(0, 1.5, (B, V, V, V)), jnp.float32)


@pytest.fixture(scope="module")
def step(table):
    return jax.tree_util.Partial(markov, table)


def carry_of(rows):
    return {"row": jnp.array(rows), "last": jnp.zeros(len(rows), jnp.int32)}


def first(count):
    return jnp.full(count, 2, jnp.int32)


def every_sequence(table, row):
    """All sequences that end, or have the limit's length, with their log-probabilities."""
    logprobs = np.asarray(jax.nn.log_softmax(table[row]))
    for length in range(1, LIMIT + 1):
        for sequence in itertools.product(range(V), repeat=length):
            if STOP in sequence[:-1] or (sequence[-1] != STOP and length < LIMIT):
                continue
            before = (0, 2, *sequence)
            terms = [logprobs[before[i], before[i + 1], t] for i, t in enumerate(sequence)]
            yield sequence, sum(terms)


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_a_beam_as_wide_as_the_tree_finds_the_best_sequences(table, step, alpha):
    wide = 4 * V**3  # so many beginnings can be alive
    found = beam_search(step, carry_of(range(B)), first(B), beams=wide, limit=LIMIT, stop=STOP,
                        alpha=alpha)  # fmt: skip
    for row in range(B):
        ranked = sorted(((log / float(length_penalty(jnp.array(len(s)), alpha)), s)
                         for s, log in every_sequence(table, row)), reverse=True)  # fmt: skip
        for place, (score, sequence) in enumerate(ranked[:20]):
            assert found.scores[row, place] == pytest.approx(score, abs=1e-4)
            assert found.lengths[row, place] == len(sequence)
            expected = [*sequence, *[0] * (LIMIT - len(sequence))]
            assert found.tokens[row, place].tolist() == expected
        # Places that nothing was left for are empty.
        assert (found.scores[row, len(ranked) :] == -np.inf).all()
        assert len(ranked) < wide


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_one_beam_is_greedy(step, alpha):
    found = beam_search(step, carry_of(range(B)), first(B), beams=1, limit=LIMIT, stop=STOP,
                        alpha=alpha)  # fmt: skip
    drawn = generate(step, carry_of(range(B)), first(B)[:, None], jnp.ones(B, jnp.int32),
                     row_keys(jax.random.key(0), B), sampler=greedy, limit=LIMIT,
                     stop=(STOP,))  # fmt: skip
    np.testing.assert_array_equal(found.tokens[:, 0], drawn.tokens)
    np.testing.assert_array_equal(found.lengths[:, 0], drawn.lengths)
    log = drawn.logprobs.sum(1) / length_penalty(drawn.lengths, alpha)
    np.testing.assert_allclose(found.scores[:, 0], log, rtol=1e-5)


def test_a_batch_gives_what_its_rows_give_one_by_one(step):
    options = {"beams": 3, "limit": LIMIT, "stop": STOP}
    together = beam_search(step, carry_of(range(B)), first(B), **options)
    for row in range(B):
        alone = beam_search(step, carry_of([row]), first(1), **options)
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
        np.testing.assert_allclose(together.scores[row], alone.scores[0], rtol=1e-6)
    assert len({together.tokens[row].tobytes() for row in range(B)}) == B
    assert (np.diff(together.scores) <= 0).all()


def test_a_row_with_a_limit_of_its_own_is_searched_as_if_it_were_alone(step):
    options, limits = {"beams": 3, "stop": STOP}, [2, LIMIT, 1]
    together = beam_search(step, carry_of(range(B)), first(B), limit=LIMIT,
                           limits=jnp.array(limits), **options)  # fmt: skip
    free = beam_search(step, carry_of(range(B)), first(B), limit=LIMIT, **options)
    for row, limit in enumerate(limits):
        alone = beam_search(step, carry_of([row]), first(1), limit=limit, **options)
        np.testing.assert_array_equal(together.tokens[row, :, :limit], alone.tokens[0])
        assert not together.tokens[row, :, limit:].any()
        np.testing.assert_array_equal(together.lengths[row], alone.lengths[0])
        np.testing.assert_allclose(together.scores[row], alone.scores[0], rtol=1e-6)
    assert (free.lengths[0] > limits[0]).any()


def test_logits_that_are_not_numbers_are_told_by_the_score(step):
    def full(step, carry, tokens):
        row, logits = step(carry["row"], tokens)
        logits = jnp.where(carry["count"][:, None] < 2, logits, jnp.nan)
        return {"row": row, "count": carry["count"] + 1}, logits

    carry = {"row": carry_of(range(B)), "count": jnp.zeros(B, jnp.int32)}
    search = partial(beam_search, jax.tree_util.Partial(full, step), carry, first(B), beams=2,
                     stop=V)  # fmt: skip
    assert np.isfinite(search(limit=2).scores).all()
    assert np.isnan(search(limit=3).scores).all()


LM = TransformerLM(13, width=16, layers=1, heads=2, limit=8)
PROMPTS = [np.array([3, 5, 2, 7, 4]), np.array([6]), np.array([2, 9, 8])]


@pytest.fixture(scope="module")
def params():
    return random_params(LM, jnp.ones((1, 2), jnp.int32))


def search_after(params, prompts, **options):
    """Searches as the docstring of `jaxdl.beam` has it, further than the cache has places."""
    tokens, lengths = pad_prompts(prompts, multiple=5)
    carry, _ = jax.jit(LM.read)(params, LM.initial_carry(len(prompts)), tokens, lengths - 1)
    last = jnp.take_along_axis(tokens, lengths[:, None] - 1, axis=1)[:, 0]
    step = jax.tree_util.Partial(LM.step, params)
    return beam_search(step, carry, last, limit=6, stop=STOP, **options)


def test_one_beam_through_a_cache_is_greedy_writing(params):
    found = search_after(params, PROMPTS, beams=1)
    step, read = (jax.tree_util.Partial(f, params) for f in (LM.step, LM.read))
    keys, carry = row_keys(jax.random.key(0), B), LM.initial_carry(B)
    drawn = generate(step, carry, *pad_prompts(PROMPTS, multiple=5), keys, read=read,
                     sampler=greedy, limit=6, stop=(STOP,))  # fmt: skip
    np.testing.assert_array_equal(found.tokens[:, 0], drawn.tokens)
    log = drawn.logprobs.sum(1) / length_penalty(drawn.lengths, 0.6)
    np.testing.assert_allclose(found.scores[:, 0], log, rtol=1e-4)


def test_prompts_of_many_lengths_are_searched_after_as_one_by_one(params):
    together = search_after(params, PROMPTS, beams=3)
    for row, prompt in enumerate(PROMPTS):
        alone = search_after(params, [prompt], beams=3)
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
        np.testing.assert_allclose(together.scores[row], alone.scores[0], rtol=1e-4)
    assert len({together.tokens[row].tobytes() for row in range(B)}) == B
