"""Laws of what is put around denoisers: guidance, clipping, thresholds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.diffusion import (
    DDIM,
    Cosine,
    Epsilon,
    V,
    clip,
    convert,
    denoiser,
    dynamic_threshold,
    guide,
    guide_doubled,
    prior,
    sample,
    trailing,
)
from tests.diffusion.names import named

SHAPE = (3, 4, 5, 2)
X = jnp.array(np.random.default_rng(6).normal(size=SHAPE), jnp.float32)
TIME = jnp.array([90.0, 450.0, 820.0])
LABELS = jnp.array([1.0, -2.0, 0.5])


def of_labels(x, time, labels):
    return jnp.tanh(x + (labels * time / 500)[:, None, None, None])


def conditional(x, time):
    return of_labels(x, time, LABELS)


def unconditional(x, time):
    return of_labels(x, time, jnp.zeros_like(time))


def assert_same(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-6)  # compiled with what is around it, or without


@pytest.mark.parametrize("make", ["two", "doubled"])
def test_one_is_the_conditional_and_zero_the_unconditional(make):
    for scale, expected in ((1.0, conditional), (0.0, unconditional)):
        guided = two_or_doubled(make, scale)
        assert_same(guided(X, TIME), expected(X, TIME))
    per_row = two_or_doubled(make, jnp.array([0.0, 1.0, 0.0]))(X, TIME)
    assert_same(per_row[1], conditional(X, TIME)[1])
    assert_same(per_row[::2], unconditional(X, TIME)[::2])


def two_or_doubled(make, scale, **options):
    if make == "two":
        return guide(conditional, unconditional, scale, **options)
    both = jnp.concatenate([LABELS, jnp.zeros(3)])
    return guide_doubled(lambda x, time: of_labels(x, time, both), scale, **options)


@pytest.mark.parametrize("options", [{}, {"interval": (100.0, 500.0)}, {"rescale": 0.7}], ids=named)
def test_both_forms_are_one(options):
    two, doubled = (two_or_doubled(make, 3.5, **options)(X, TIME) for make in ("two", "doubled"))
    np.testing.assert_allclose(two, doubled, atol=1e-6)


def test_guidance_is_the_formula():
    c, u = (np.asarray(f(X, TIME)) for f in (conditional, unconditional))
    guided = u + 4.0 * (c - u)
    np.testing.assert_allclose(guide(conditional, unconditional, 4.0)(X, TIME), guided, atol=1e-5)
    factor = c.std((1, 2, 3), keepdims=True) / guided.std((1, 2, 3), keepdims=True)
    expected = 0.7 * guided * factor + 0.3 * guided
    rescaled = guide(conditional, unconditional, 4.0, rescale=0.7)(X, TIME)
    np.testing.assert_allclose(rescaled, expected, atol=1e-5)
    whole = guide(conditional, unconditional, 4.0, rescale=1.0)(X, TIME)
    np.testing.assert_allclose(whole.std((1, 2, 3)), c.std((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("prediction", [Epsilon(), V()], ids=named)
def test_guiding_x0_is_guiding_what_the_network_predicts(prediction):
    schedule = Cosine()
    level = schedule.level(TIME)
    c, u = (denoiser(f, schedule, prediction) for f in (conditional, unconditional))
    outputs = denoiser(
        lambda x, t: unconditional(x, t) + 3 * (conditional(x, t) - unconditional(x, t)),
        schedule,
        prediction,
    )
    np.testing.assert_allclose(guide(c, u, 3.0)(X, TIME), outputs(X, TIME), rtol=1e-4, atol=1e-4)
    assert convert(X, X, level, source=prediction, target=prediction).shape == SHAPE


def test_outside_the_interval_only_the_condition_counts_and_nothing_else_is_computed():
    calls = []

    def counted(x, time):
        jax.debug.callback(lambda: calls.append(1))
        return unconditional(x, time)

    guided = jax.jit(guide(conditional, counted, 3.0, interval=(90.0, 450.0)))
    full = guide(conditional, unconditional, 3.0)(X, TIME)
    rows = guided(X, TIME)
    jax.effects_barrier()
    np.testing.assert_allclose(rows[1], full[1], atol=1e-6)  # its upper end belongs to it
    assert_same(rows[::2], conditional(X, TIME)[::2])  # its lower end does not
    assert len(calls) == 1
    assert_same(guided(X, TIME + 400), conditional(X, TIME + 400))
    jax.effects_barrier()
    assert len(calls) == 1


@pytest.mark.parametrize("value", [0.0, 0.25, -1.0])  # of which the mean is exact
def test_an_image_of_one_value_stays_as_it_is_when_rescaled(value):
    flat = lambda x, time: jnp.full_like(x, value)  # noqa: E731
    guided = guide(flat, flat, 3.0, rescale=0.5)(X, TIME)
    np.testing.assert_allclose(guided, np.full(SHAPE, value), rtol=1e-6)


def test_a_guided_sample_moves_from_one_condition_to_beyond_the_other():
    grid = trailing(Cosine(), 12)
    keys = jax.random.split(jax.random.key(0), 3)
    x = prior(keys, SHAPE[1:], grid)
    towards = lambda value: lambda x, time: jnp.full_like(x, value)  # noqa: E731
    for scale, expected in ((0.0, -0.2), (1.0, 0.4), (2.0, 1.0)):
        out = sample(guide(towards(0.4), towards(-0.2), scale), x, grid, solver=DDIM())
        np.testing.assert_allclose(out, expected, atol=1e-5)


def test_clipping_and_thresholding_keep_within_the_range():
    wild = lambda x, time: 3 * x * LABELS[:, None, None, None]  # noqa: E731
    np.testing.assert_array_equal(clip(wild, 0.5)(X, TIME), np.clip(wild(X, TIME), -0.5, 0.5))
    out = np.asarray(dynamic_threshold(wild, quantile=0.9)(X, TIME))
    x0 = np.asarray(wild(X, TIME))
    for row, given in zip(out, x0, strict=True):
        s = max(np.quantile(np.abs(given), 0.9), 1)
        np.testing.assert_allclose(row, np.clip(given, -s, s) / s, rtol=1e-5)
    assert np.abs(out).max() <= 1
    assert (out == np.clip(x0, -1, 1)).mean() < 0.5
    tame = lambda x, time: 0.1 * jnp.tanh(x)  # noqa: E731
    for around in (clip, dynamic_threshold):
        np.testing.assert_array_equal(around(tame)(X, TIME), tame(X, TIME))
    np.testing.assert_array_equal(dynamic_threshold(wild, most=1.0)(X, TIME), clip(wild)(X, TIME))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: guide(conditional, unconditional, 2.0, interval=(5.0, 5.0)), "low < high"),
        (lambda: guide(conditional, unconditional, 2.0, rescale=1.5), "rescale"),
        (lambda: guide_doubled(conditional, 2.0, rescale=-0.5), "rescale"),
        (lambda: dynamic_threshold(conditional, quantile=0.0), "quantile"),
        (lambda: dynamic_threshold(conditional, most=0.5), "most"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
