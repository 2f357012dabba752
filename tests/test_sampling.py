"""Laws of the samplers, and that frequencies are those of the softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from jaxdl.sampling import Forbid, Sample, Temperature, TopK, TopP, greedy

B, V = 3, 11
RNG = np.random.default_rng(1)
LOGITS = jnp.array(RNG.normal(size=(B, V)) * 2, jnp.float32)
TIED = jnp.zeros((B, V)).at[:, 4].set(-1.0)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def kept(logits):
    return np.isfinite(np.asarray(logits))


@pytest.mark.parametrize("logits", [LOGITS, TIED], ids=["different", "tied"])
@pytest.mark.parametrize(
    "sampler", [Sample(TopK(1)), Sample(TopP(1e-6)), Sample(Temperature(2.0), TopK(1))], ids=str
)
def test_one_token_left_is_greedy_also_on_a_tie(logits, sampler):
    for seed in range(5):
        assert sampler(keys(B, seed), logits).tolist() == greedy(keys(B), logits).tolist()
    assert greedy(keys(B), logits).tolist() == np.asarray(logits).argmax(-1).tolist()


def test_a_temperature_towards_zero_is_greedy():
    sampler = Sample(Temperature(1e-4))
    for seed in range(5):
        assert sampler(keys(B, seed), LOGITS).tolist() == greedy(keys(B), LOGITS).tolist()


@pytest.mark.parametrize("adjust", [TopP(1.0), TopK(V + 5), Temperature(1), Forbid(())])
def test_adjustments_that_leave_everything_are_plain_sampling(adjust):
    for seed in range(5):
        same = Sample(adjust)(keys(B, seed), LOGITS), Sample()(keys(B, seed), LOGITS)
        assert same[0].tolist() == same[1].tolist()


@pytest.mark.parametrize(
    "sampler",
    [Sample(), Sample(Temperature(0.5)), Sample(Temperature(3.0), TopK(4)), Sample(TopP(0.8))],
    ids=str,
)
def test_frequencies_are_those_of_the_softmax(sampler):
    n = 20_000
    logits = LOGITS[1]
    expected = np.asarray(logits, np.float64)
    for adjust in sampler.adjustments:
        expected = np.asarray(adjust(jnp.asarray(expected, jnp.float32)), np.float64)
    expected = np.exp(expected - expected.max())
    expected = n * expected / expected.sum()
    draws = sampler(keys(n), jnp.broadcast_to(logits[None], (n, V)))
    counts = np.bincount(np.asarray(draws), minlength=V)
    possible = expected > 0
    assert not counts[~possible].any()
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < chi2.ppf(0.999, possible.sum() - 1)


@pytest.mark.parametrize("k", [1, 3, V])
def test_top_k_keeps_exactly_the_k_largest(k):
    for logits in (LOGITS, TIED):
        assert kept(TopK(k)(logits)).sum(-1).tolist() == [k] * B
    largest = np.sort(LOGITS, -1)[:, -k][:, None]
    np.testing.assert_array_equal(kept(TopK(k)(LOGITS)), largest <= LOGITS)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_fewest_that_reach_p(p):
    for row, mask in zip(np.asarray(jax.nn.softmax(LOGITS)), kept(TopP(p)(LOGITS)), strict=True):
        chosen = row[mask]
        assert chosen.sum() >= p - 1e-6
        assert chosen.sum() - chosen.min() < p  # without the rarest of them it would not
        assert mask.sum() == V or chosen.min() > row[~mask].max()
    assert kept(TopP(0.5)(jnp.zeros((B, 8)))).sum(-1).tolist() == [4] * B  # also on a tie


def test_kept_logits_stay_as_they_are_and_forbidden_ones_go():
    for adjust in (TopK(4), TopP(0.7), Forbid((0, 3))):
        out = adjust(LOGITS)
        np.testing.assert_array_equal(out[kept(out)], LOGITS[kept(out)])
    assert np.argwhere(~kept(Forbid((0, 3))(LOGITS)))[:, 1].tolist() == [0, 3] * B
    assert kept(Forbid(())(LOGITS)).all()


def test_adjustments_apply_in_order():
    # Flattened first, more tokens are needed to reach p.
    flat = kept(TopP(0.9)(Temperature(5.0)(LOGITS))).sum()
    assert flat > kept(Temperature(5.0)(TopP(0.9)(LOGITS))).sum()
    draws = Sample(TopP(0.9), Temperature(5.0))(keys(4000), jnp.repeat(LOGITS[:1], 4000, 0))
    assert set(np.asarray(draws)) == set(np.flatnonzero(kept(TopP(0.9)(LOGITS[0]))))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Temperature(0.0),
        lambda: Temperature(float("nan")),
        lambda: Temperature(float("inf")),
        lambda: TopK(0),
        lambda: TopP(0.0),
        lambda: TopP(1.1),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(make):
    with pytest.raises(ValueError):
        make()


def test_equal_samplers_are_equal():
    assert Sample(Temperature(0.5), TopK(3)) == Sample(Temperature(0.5), TopK(3))
    assert hash(Sample(TopP(0.5))) == hash(Sample(TopP(0.5)))
    assert Sample(TopK(3)) != Sample(TopK(4))
