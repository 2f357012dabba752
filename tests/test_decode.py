"""Laws of decoding: rows are independent, chunks are the whole, and a key decides everything."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.decode import (
    Decoding,
    advance,
    begin,
    generate,
    in_batches,
    pad_prompts,
    prefill,
    row_keys,
    stream,
)
from jaxdl.errors import UserError
from jaxdl.sampling import Sample, Temperature, TopK, greedy

D, V, LIMIT = 5, 7, 9
PROMPTS = [np.array(p, np.int32) for p in ([3], [1, 4, 1, 5, 2], [6, 2])]
B = len(PROMPTS)


class Carry(NamedTuple):
    """A state and a cache with a place of its own for each row: as a transformer's would be."""

    hidden: jax.Array  # (b, d)
    seen: jax.Array  # (b, s) all tokens so far
    at: jax.Array  # (b)


def tiny_step(params, carry, tokens):
    hidden = jnp.tanh(carry.hidden @ params["w"] + params["embed"][tokens])
    seen = jax.vmap(lambda row, at, token: row.at[at].set(token))(carry.seen, carry.at, tokens)
    # Attends to all that was seen, so a frozen row that was not frozen would tell.
    logits = hidden @ params["out"] + 0.1 * (params["embed"][seen].sum(1) @ params["out"])
    return Carry(hidden, seen, carry.at + 1), logits


def zeros(b):
    return Carry(jnp.zeros((b, D)), jnp.zeros((b, 24), jnp.int32), jnp.zeros(b, jnp.int32))


@pytest.fixture(scope="module")
def step():
    rng = np.random.default_rng(3)
    shapes = {"w": (D, D), "embed": (V, D), "out": (D, V)}
    params = {name: jnp.array(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}
    params["embed"] = params["embed"].at[0].set(0)
    return jax.tree_util.Partial(tiny_step, params)


@functools.cache
def keys():
    return row_keys(jax.random.key(5), B)


def loop(step, prompt, key, sampler, *, stop=(), limit=LIMIT):
    """What `generate` is to do for one row, as a Python loop."""
    carry, logprobs, drawn = zeros(1), [], []
    for token in prompt:
        carry, logits = step(carry, jnp.array([token]))
    for n in range(limit):
        token = int(sampler(jax.random.fold_in(key, n)[None], logits)[0])
        drawn.append(token)
        logprobs.append(float(jax.nn.log_softmax(logits)[0, token]))
        if token in stop:
            break
        carry, logits = step(carry, jnp.array([token]))
    return drawn, logprobs


@pytest.mark.parametrize("sampler", [greedy, Sample(Temperature(1.5), TopK(5))])
@pytest.mark.parametrize("stop", [(), (2, 4)])
def test_a_ragged_batch_is_its_rows_one_by_one_in_a_python_loop(step, sampler, stop):
    tokens, lengths = pad_prompts(PROMPTS, multiple=4)
    out = generate(step, zeros(B), tokens, lengths, keys(), sampler=sampler, limit=LIMIT, stop=stop)
    assert out.tokens.shape == out.logprobs.shape == (B, LIMIT)
    for i, prompt in enumerate(PROMPTS):
        drawn, logprobs = loop(step, prompt, keys()[i], sampler, stop=stop)
        n = int(out.lengths[i])
        assert n == len(drawn)
        assert out.tokens[i].tolist() == drawn + [0] * (LIMIT - n)
        np.testing.assert_allclose(out.logprobs[i, :n], logprobs, atol=1e-5)
        assert not out.logprobs[i, n:].any()


def test_some_row_stops_early_in_the_test_above_and_some_row_goes_on(step):
    sampler = Sample(Temperature(1.5), TopK(5))
    rows = zip(PROMPTS, keys(), strict=True)
    lengths = [len(loop(step, prompt, key, sampler, stop=(2, 4))[0]) for prompt, key in rows]
    assert min(lengths) < max(lengths)


def test_neighbours_and_padding_change_nothing(step):
    sampler = Sample(Temperature(2.0))
    tokens, lengths = pad_prompts(PROMPTS, multiple=1)
    run = functools.partial(generate, step, sampler=sampler, limit=LIMIT)
    whole = run(zeros(B), tokens, lengths, keys())
    order = jnp.array([2, 0, 1])
    wide = jnp.pad(tokens, ((0, 0), (0, 3)), constant_values=5)  # whatever stands in the padding
    moved = run(zeros(B), wide[order], lengths[order], keys()[order])
    assert moved.tokens.tolist() == whole.tokens[order].tolist()
    other = jax.random.key(6)
    assert run(zeros(B), tokens, lengths, row_keys(other, B)).tokens.tolist() != (
        whole.tokens.tolist()
    )
    assert jnp.array_equal(
        jax.random.key_data(row_keys(other, 5)[:3]), jax.random.key_data(row_keys(other, 3))
    )


def test_prefill_leaves_each_row_after_its_own_last_token(step):
    tokens, lengths = pad_prompts(PROMPTS, multiple=4)
    carry, logits = prefill(step, zeros(B), tokens, lengths)
    assert carry.at.tolist() == [1, 5, 2]
    for i, prompt in enumerate(PROMPTS):
        alone = zeros(1)
        for token in prompt:
            alone, expected = step(alone, jnp.array([token]))
        np.testing.assert_allclose(logits[i], expected[0], atol=1e-6)
        np.testing.assert_array_equal(carry.seen[i], alone.seen[0])
    _, after_nothing = prefill(step, zeros(B), tokens, lengths * jnp.array([0, 1, 1]))
    assert np.isnan(after_nothing).all(1).tolist() == [True, False, False]


@pytest.mark.parametrize(("chunk", "stop"), [(4, ()), (4, (2, 4)), (16, (2, 4))])
def test_a_stream_in_chunks_is_the_whole(step, chunk, stop):
    sampler = Sample(Temperature(1.5))
    tokens, lengths = pad_prompts(PROMPTS, multiple=4)
    whole = generate(
        step, zeros(B), tokens, lengths, keys(), sampler=sampler, limit=LIMIT, stop=stop
    )
    state = begin(*prefill(step, zeros(B), tokens, lengths), keys())
    pieces = list(stream(step, state, sampler=sampler, limit=LIMIT, stop=stop, chunk=chunk))
    joined = np.concatenate([p.tokens for p in pieces], axis=1)
    width = joined.shape[1]
    assert joined.tolist() == whole.tokens[:, :width].tolist()
    assert not whole.tokens[:, width:].any()
    assert sum(p.lengths for p in pieces).tolist() == whole.lengths.tolist()
    np.testing.assert_allclose(
        np.concatenate([p.logprobs for p in pieces], axis=1), whole.logprobs[:, :width], atol=1e-5
    )


def test_nothing_is_computed_once_all_rows_have_ended():
    def counting(calls, tokens):  # of n calls the last one makes token n the next
        return calls + 1, jax.nn.one_hot(calls[:, 0] + 1, V) * 9.0

    state = Decoding(
        jnp.zeros((2, 1), jnp.int32),
        jax.nn.one_hot(jnp.zeros(2, int), V) * 9.0,
        row_keys(jax.random.key(0), 2),
        jnp.int32(0),
        jnp.zeros(2, bool),
    )
    state, out = advance(counting, state, sampler=greedy, size=6, stop=(3,))
    assert out.tokens.tolist() == [[0, 1, 2, 3, 0, 0]] * 2
    assert state.carry.tolist() == [[4], [4]]
    assert state.count == 4
    state, out = advance(counting, state, sampler=greedy, size=6, stop=(3,))
    assert out.lengths.tolist() == [0, 0]
    assert state.carry.tolist() == [[4], [4]]


def test_samplers_that_are_equal_share_one_compiled_program(step):
    tokens, lengths = pad_prompts(PROMPTS, multiple=4)
    traced = []

    def watched(params, carry, x):
        traced.append(x)
        return tiny_step(params, carry, x)

    def run(temperature):
        sampler = Sample(Temperature(temperature))
        watched_step = jax.tree_util.Partial(watched, step.args[0])
        generate(watched_step, zeros(B), tokens, lengths, keys(), sampler=sampler, limit=2)
        return len(traced)

    assert run(0.7) == run(0.7) < run(0.8)


def test_prompts_are_padded_and_empty_ones_refused():
    tokens, lengths = pad_prompts(PROMPTS, multiple=4)
    assert tokens.tolist()[0] == [3, 0, 0, 0, 0, 0, 0, 0]
    assert (tokens.shape, lengths.tolist()) == ((3, 8), [1, 5, 2])
    assert tokens.dtype == lengths.dtype == np.int32
    for prompts in ([], [PROMPTS[0], np.array([], np.int32)]):
        with pytest.raises(UserError, match="a prompt is empty"):
            pad_prompts(prompts)


def test_a_carry_without_rows_is_refused(step):
    tokens, lengths = pad_prompts(PROMPTS, multiple=4)

    def stateful(carry, tokens):
        return carry + 1, jnp.zeros((B, V))

    with pytest.raises(ValueError, match="a leaf has shape"):
        prefill(stateful, jnp.int32(0), tokens, lengths)


def test_batches_hold_every_prompt_once_with_those_of_like_length():
    rng = np.random.default_rng(0)
    prompts = [np.full(n, i + 1, np.int32) for i, n in enumerate(rng.integers(1, 60, 21))]
    seen = []

    def write(tokens, lengths):
        seen.append(np.asarray(lengths))
        assert (np.asarray(tokens > 0).sum(1) == lengths).all()
        return tokens[:, :1]

    written = in_batches(prompts, write, batch_size=8)
    assert [row.tolist() for row in written] == [[i + 1] for i in range(21)]
    assert [len(lengths) for lengths in seen] == [8, 8, 8]  # the last one filled up
    assert all(a.min() >= b.max() for a, b in itertools.pairwise(seen))
