"""Laws of the translator: packed is separate, cached is full, no look ahead, padding is nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.data.packing import first_fit, lay_out
from jaxdl.losses import softmax_cross_entropy
from jaxdl.models import EncoderDecoder
from tests.overfit import overfit
from tests.parameters import random_params
from tests.reach import assert_reach, reach

V, LENGTHS = 23, ((5, 3), (2, 7), (4, 4), (7, 2), (3, 5))
MODEL = EncoderDecoder(V, width=16, layers=2, heads=2, dropout=0.2)


@pytest.fixture(scope="module")
def sides():
    rng = np.random.default_rng(0)
    return tuple([rng.integers(1, V, pair[side]).astype(np.int32) for pair in LENGTHS]
                 for side in (0, 1))  # fmt: skip


@pytest.fixture(scope="module")
def params():
    tokens = jnp.ones((1, 4), jnp.int32)
    return random_params(MODEL, tokens, tokens)


@pytest.fixture(scope="module")
def forward():
    return jax.jit(lambda params, *inputs: MODEL.apply({"params": params}, *inputs, train=False))


@pytest.fixture(scope="module")
def separate(sides, params, forward):
    """Of each pair, its logits when it is alone; rows are padded, so that they are one shape."""
    alone = [lay_out([[i] for i in range(len(LENGTHS))], side, 9)[0].astype(np.int32)
             for side in sides]  # fmt: skip
    logits = np.asarray(forward(params, *map(jnp.asarray, alone)))
    return [row[: len(target)] for row, target in zip(logits, sides[1], strict=True)]


def test_a_packed_row_gives_what_its_pairs_give_alone(sides, params, forward, separate):
    sizes = np.array(LENGTHS)
    rows = first_fit(sizes, (12, 12), seed=None)
    assert max(map(len, rows)) > 1
    source, heard = lay_out(rows, sides[0], 12)
    tokens, said = lay_out(rows, sides[1], 12)
    arrays = (jnp.asarray(x.astype(np.int32)) for x in (source, tokens, heard, said))
    logits = np.asarray(forward(params, *arrays))
    for number, row in enumerate(rows):
        for segment, item in enumerate(row, 1):
            packed = logits[number][said[number] == segment]
            np.testing.assert_allclose(packed, separate[item], rtol=1e-4, atol=1e-5)


def test_token_by_token_with_a_cache_is_the_whole_at_once(sides, params, separate):
    source, tokens = (lay_out([[i] for i in range(len(LENGTHS))], side, 9)[0].astype(np.int32)
                      for side in sides)  # fmt: skip
    carry = jax.jit(lambda p, x: MODEL.carry(p, x, limit=7))(params, jnp.asarray(source))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(carry)} == {len(LENGTHS)}
    step = jax.jit(MODEL.step)
    for t in range(8):
        carry, logits = step(params, carry, jnp.asarray(tokens[:, t]))
        for row, expected in zip(np.asarray(logits), separate, strict=True):
            if t < len(expected):
                np.testing.assert_allclose(row, expected[t], rtol=1e-4, atol=1e-5)
        assert np.isnan(np.asarray(logits)).all() == (t >= 7)  # past the limit


def test_a_token_feels_those_before_it_and_all_of_its_source_and_nothing_else(params):
    rng = np.random.default_rng(1)
    source, tokens = (jnp.asarray(rng.integers(1, V, (2, t)), jnp.int32) for t in (6, 5))
    source, before = source.at[0, 4:].set(0), np.tri(5, dtype=bool)
    of_source, of_tokens = reach(MODEL, params, source, tokens, sides=2)
    assert_reach(of_tokens, np.broadcast_to(before, (2, 5, 5)))
    assert_reach(of_source, np.broadcast_to((source > 0)[:, None], (2, 5, 6)))
    heard = np.array([[1, 1, 2, 2, 2, 0], [1, 2, 3, 3, 3, 3]], np.int32)
    said = np.array([[1, 2, 2, 0, 0], [1, 1, 2, 3, 3]], np.int32)
    packed = (source, tokens, jnp.asarray(heard), jnp.asarray(said))
    of_source, of_tokens = reach(MODEL, params, *packed, sides=2)
    assert_reach(of_tokens, before & (said[:, :, None] == said[:, None]))
    assert_reach(of_source, said[:, :, None] == heard[:, None])


@pytest.mark.parametrize(
    "post_norm", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["pre", "post"]
)
def test_one_batch_is_overfitted_within_100_steps(post_norm):
    rng = np.random.default_rng(2)
    source, target = (jnp.asarray(rng.integers(2, V, (4, t)), jnp.int32) for t in (6, 5))
    # All begin alike: what is to be written can be known from the source alone.
    tokens = jnp.pad(target, ((0, 0), (1, 0)), constant_values=1)[:, :-1]
    model = MODEL.clone(layers=1, dropout=0.0, post_norm=post_norm)
    init = lambda: model.init(jax.random.key(0), source, tokens, train=False)  # noqa: E731

    def loss(params):
        logits = model.apply({"params": params}, source, tokens, train=True)
        return softmax_cross_entropy(logits, target).mean()

    _, losses = overfit(loss, jax.jit(init)()["params"])
    assert losses[0] > 2
    assert losses[-1] < 0.1


def test_a_width_that_heads_or_positions_do_not_divide_is_told():
    with pytest.raises(ValueError, match="16 does not split over 3 heads"):
        random_params(MODEL.clone(heads=3), *[jnp.ones((1, 2), jnp.int32)] * 2)
    with pytest.raises(ValueError, match="a width of 9 is odd"):
        random_params(MODEL.clone(width=9, heads=3), *[jnp.ones((1, 2), jnp.int32)] * 2)
