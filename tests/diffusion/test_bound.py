"""The variational bound, against its formula in NumPy and the likelihood that it bounds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxdl.diffusion import Bound, Cosine, Linear, forward_variance, posterior_variance
from jaxdl.diffusion.bound import grey_log_prob
from jaxdl.keys import derive

LEVELS = 16
SHAPE = (3, 4, 5, 2)
SCHEDULE = Linear(12, first=1e-3, last=0.5)
GREYS = np.linspace(-1, 1, LEVELS)
IMAGES = jnp.array(GREYS[np.random.default_rng(5).integers(0, LEVELS, SHAPE)], jnp.float32)
KEYS = jax.random.split(jax.random.key(2), SHAPE[0])
VARIANCES = pytest.mark.parametrize("variance", [posterior_variance, forward_variance])


def guess(x, time):
    return jnp.tanh(x) * (1 - time / 20)[:, None, None, None]


def expected_terms(large):
    """Ho et al.'s formulas, one term after the other, in float64."""
    betas, bar = SCHEDULE.betas(), SCHEDULE.alpha_bar
    before = np.append(1, bar[:-1])
    tilde = betas * (1 - before) / (1 - bar)
    model = np.append(tilde[1], betas[1:] if large else tilde[1:])
    x0, terms = np.asarray(IMAGES, np.float64), []
    for t in range(SCHEDULE.steps):
        noise = [jax.random.normal(derive(key, "noise", t), SHAPE[1:]) for key in KEYS]
        x = np.sqrt(bar[t]) * x0 + np.sqrt(1 - bar[t]) * np.stack(noise).astype(np.float64)
        guessed = np.asarray(guess(jnp.asarray(x, jnp.float32), jnp.full(3, float(t))), np.float64)
        of_x0, of_x = np.sqrt(before[t]) * betas[t], np.sqrt(1 - betas[t]) * (1 - before[t])
        mean, guess_mean = ((of_x0 * v + of_x * x) / (1 - bar[t]) for v in (x0, guessed))
        if t:
            gap = (mean - guess_mean) ** 2
            log_ratio = np.log(model[t] / tilde[t])
            nats = 0.5 * (log_ratio + (tilde[t] + gap) / model[t] - 1)
        else:
            high = np.where(x0 > 0.999, np.inf, x0 + 1 / (LEVELS - 1))
            low = np.where(x0 < -0.999, -np.inf, x0 - 1 / (LEVELS - 1))
            at = norm(guess_mean, np.sqrt(model[0]))
            # The smaller of both tails, for the other one has no digits left.
            nats = -np.log(np.maximum(at.cdf(high) - at.cdf(low), at.sf(low) - at.sf(high)))
        terms.append(nats.mean((1, 2, 3)) / np.log(2))
    return np.stack(terms)


@VARIANCES
def test_terms_are_the_formula(variance):
    bound = Bound(SCHEDULE, LEVELS, variance)
    terms = bound.terms(guess, IMAGES, KEYS)
    assert terms.shape == (SCHEDULE.steps, SHAPE[0])
    expected = expected_terms(large=variance is forward_variance)
    np.testing.assert_allclose(terms, expected, rtol=2e-4)
    bar = SCHEDULE.alpha_bar[-1]
    prior = 0.5 * (bar * np.asarray(IMAGES) ** 2 + (1 - bar) - 1 - np.log(1 - bar))
    prior = prior.mean((1, 2, 3)) / np.log(2)
    np.testing.assert_allclose(bound.prior(IMAGES), prior, rtol=1e-3)
    total = bound.total(guess, IMAGES, KEYS)
    np.testing.assert_allclose(total, prior + expected.sum(0), rtol=2e-4)


def test_one_random_time_is_unbiased():
    """Its mean over the times that it may draw is the sum, and it draws all alike."""
    bound = Bound(SCHEDULE, LEVELS)
    n = 6000
    keys = jax.random.split(jax.random.key(4), n)
    image = jnp.broadcast_to(IMAGES[:1, :1, :2], (n, 1, 2, 2))
    once = np.asarray(jax.jit(functools.partial(bound.estimate, guess))(image, keys))
    whole = np.asarray(bound.total(guess, image, keys)).mean()
    assert once.std() > 0.05 * whole
    assert abs(once.mean() - whole) < 4 * once.std() / np.sqrt(n)


def test_an_estimate_is_one_of_the_terms_of_its_row():
    bound = Bound(SCHEDULE, LEVELS)
    terms, prior = bound.terms(guess, IMAGES, KEYS), bound.prior(IMAGES)
    estimate = jax.jit(functools.partial(bound.estimate, guess))
    once = estimate(IMAGES, KEYS)
    times = np.abs(prior[None] + SCHEDULE.steps * terms - once[None]).argmin(0)
    for row, time in enumerate(times):
        np.testing.assert_allclose(once[row], prior[row] + 12 * terms[time, row], rtol=1e-5)
    np.testing.assert_allclose(estimate(IMAGES[1:], KEYS[1:]), once[1:], rtol=1e-6)


def test_it_bounds_the_likelihood_of_normal_data_closely():
    """With the best denoiser little is left between the bound and the truth."""
    n, levels, schedule = 2000, 256, Cosine(60)
    mean, std = 0.17, 0.2  # so that nothing is cut at -1 and 1
    x0 = mean + std * np.random.default_rng(8).normal(size=(n, 1))
    x0 = np.round((x0 + 1) / 2 * (levels - 1)) / (levels - 1) * 2 - 1
    assert np.abs(x0).max() < 1
    half = 1 / (levels - 1)
    data = norm(mean, std)
    truth = -np.log2(data.cdf(x0 + half) - data.cdf(x0 - half)).mean()
    keys = jax.random.split(jax.random.key(3), n)

    def denoise(x, time):
        alpha, sigma = schedule.level(time).like(x)
        return mean + alpha * std**2 / ((alpha * std) ** 2 + sigma**2) * (x - alpha * mean)

    def bits(denoise, variance):
        bound = Bound(schedule, levels, variance)
        return float(bound.total(denoise, jnp.array(x0, jnp.float32), keys).mean())

    best = bits(denoise, forward_variance)
    assert truth < best < truth + 0.2
    assert bits(lambda x, time: 0.9 * denoise(x, time), forward_variance) > best + 0.2
    # The smaller variance is the best one for data that are all alike, which these are not.
    assert bits(denoise, posterior_variance) > best + 0.2


@pytest.mark.parametrize("std", [0.002, 0.1, 3.0])
def test_the_probabilities_of_all_grey_values_sum_to_one(std):
    mean = jnp.array([[-1.3], [-0.51], [0.0], [0.93]])
    shape = (4, LEVELS)
    log_probs = jax.jit(grey_log_prob, static_argnames="levels")(
        jnp.broadcast_to(jnp.asarray(GREYS, jnp.float32)[None], shape),
        jnp.broadcast_to(mean, shape),
        std=jnp.full(shape, std),
        levels=LEVELS,
    )
    np.testing.assert_allclose(np.exp(log_probs).sum(1), 1, rtol=1e-4)
    assert np.isfinite(log_probs).all()  # far out, too, where it is a square


def test_its_gradient_is_finite():
    bound = Bound(SCHEDULE, LEVELS)

    @jax.jit
    def loss(shift):
        return bound.total(lambda x, t: guess(x, t) + shift, IMAGES, KEYS).mean()

    slope = jax.grad(loss)(0.1)
    assert np.isfinite(slope)
    finite = (loss(0.11) - loss(0.09)) / 0.02
    np.testing.assert_allclose(slope, finite, rtol=0.05)


def test_what_cannot_be_meant_is_refused(unchecked):
    with pytest.raises(ValueError, match="answers with shape"):
        Bound(SCHEDULE, LEVELS).total(lambda x, time: x[..., :1], IMAGES, KEYS)
    for make in (lambda: Bound(Linear(1)), lambda: Bound(Linear(5), levels=1)):
        with pytest.raises(ValueError, match="or more"):
            make()
    assert Bound(Linear(5)) == Bound(Linear(5))
