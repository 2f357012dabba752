"""Laws of predictions: they invert each other, under every scaling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.diffusion import (
    EDM,
    X0,
    Cosine,
    Epsilon,
    Level,
    Preconditioned,
    V,
    convert,
    denoiser,
    diffuse,
    forward_variance,
    noise_of,
    posterior,
    renoise,
    scale_inputs,
)
from tests.diffusion.names import named

PREDICTIONS = [X0(), Epsilon(), V(), Preconditioned(0.7)]
SHAPE = (3, 4, 5, 2)
RNG = np.random.default_rng(2)
IMAGES, NOISE = (jnp.array(RNG.normal(size=SHAPE), jnp.float32) for _ in range(2))
LEVELS = {
    "preserving": Cosine().level(jnp.array([90.0, 450.0, 820.0])),
    "exploding": EDM().level(jnp.array([0.05, 1.3, 40.0])),
}


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS.keys())
@pytest.mark.parametrize("target", PREDICTIONS, ids=named)
@pytest.mark.parametrize("source", PREDICTIONS, ids=named)
def test_predictions_invert_each_other(source, target, level):
    x = diffuse(IMAGES, NOISE, level)
    output = source.target(IMAGES, NOISE, level)
    np.testing.assert_allclose(source.to_x0(output, x, level), IMAGES, atol=3e-4)
    there = convert(output, x, level, source=source, target=target)
    # Noise that is little beside the signal, or the other way round, loses digits in their sum.
    np.testing.assert_allclose(there, target.target(IMAGES, NOISE, level), rtol=1e-5, atol=1e-4)
    back = convert(there, x, level, source=target, target=source)
    np.testing.assert_allclose(back, output, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS.keys())
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=named)
def test_the_gain_is_the_slope_of_x0_in_the_output(prediction, level):
    x = diffuse(IMAGES, NOISE, level)
    output = prediction.target(IMAGES, NOISE, level)
    moved = prediction.to_x0(output + 1, x, level) - prediction.to_x0(output, x, level)
    gain = np.asarray(prediction.gain(level))
    assert gain.shape == (3,)
    np.testing.assert_allclose(
        np.abs(moved), np.broadcast_to(gain[:, None, None, None], SHAPE), rtol=1e-3, atol=1e-5
    )


def test_targets_are_those_of_the_papers():
    alpha, sigma = (np.asarray(v)[:, None, None, None] for v in LEVELS["preserving"])
    x0, noise = np.asarray(IMAGES), np.asarray(NOISE)
    level = LEVELS["preserving"]
    np.testing.assert_array_equal(Epsilon().target(IMAGES, NOISE, level), noise)
    v = alpha * noise - sigma * x0
    np.testing.assert_allclose(V().target(IMAGES, NOISE, level), v, atol=1e-6)
    # EDM's preconditioning, as its table 1 has it.
    level = LEVELS["exploding"]
    s, data = np.asarray(level.sigma)[:, None, None, None], 0.7
    skip, out = data**2 / (s**2 + data**2), s * data / np.sqrt(s**2 + data**2)
    f = (x0 - skip * (x0 + s * noise)) / out
    target = Preconditioned(data).target(IMAGES, NOISE, level)
    np.testing.assert_allclose(target, f, rtol=1e-4, atol=1e-4)
    # The weight of EDM's loss, 1 / c_out^2, is what makes its target's error plain.
    weight = (s**2 + data**2) / (s * data) ** 2
    np.testing.assert_allclose(weight * out**2, 1, rtol=1e-5)


def test_v_is_preconditioning_for_data_of_unit_variance():
    level = LEVELS["preserving"]
    x = diffuse(IMAGES, NOISE, level)
    np.testing.assert_allclose(
        Preconditioned(1.0).to_x0(-NOISE, x, level), V().to_x0(NOISE, x, level), atol=1e-5
    )


def test_v_tells_x0_also_where_there_is_no_signal():
    level = Level(jnp.zeros(3), jnp.ones(3))
    x = diffuse(IMAGES, NOISE, level)
    np.testing.assert_allclose(V().to_x0(V().target(IMAGES, NOISE, level), x, level), IMAGES)


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS.keys())
def test_what_a_preconditioned_network_sees_and_should_say_has_unit_variance(level):
    rng = np.random.default_rng(0)
    x0, noise = (jnp.array(s * rng.normal(size=(3, 20_000)), jnp.float32) for s in (0.7, 1.0))
    prediction = Preconditioned(0.7)
    target = prediction.target(x0, noise, level)
    np.testing.assert_allclose(target.std(1), 1, rtol=0.03)
    seen = {}

    def network(x, time):
        seen["x"], seen["time"] = x, time
        return x

    schedule = EDM() if level is LEVELS["exploding"] else Cosine()
    time = level.sigma if level is LEVELS["exploding"] else jnp.array([90.0, 450.0, 820.0])
    scale_inputs(network, schedule, prediction)(diffuse(x0, noise, level), time)
    np.testing.assert_allclose(seen["x"].std(1), 1, rtol=0.03)
    np.testing.assert_allclose(seen["time"], np.log(level.ratio) / 4, atol=1e-6)


def test_a_denoiser_knows_its_rows_times():
    schedule, time = Cosine(), jnp.array([90.0, 450.0, 820.0])
    x = diffuse(IMAGES, NOISE, schedule.level(time))
    for prediction in PREDICTIONS:
        denoise = denoiser(
            lambda x, time, p=prediction: p.target(IMAGES, NOISE, schedule.level(time)),
            schedule,
            prediction,
        )
        np.testing.assert_allclose(denoise(x, time), IMAGES, atol=1e-4)


@pytest.mark.parametrize("kind", LEVELS)
def test_the_process_is_markov_and_the_posterior_is_bayes(kind):
    """For one pixel all three are normal, so Bayes' rule is arithmetic on precisions."""
    here, there = (Level(*(float(v[i]) for v in LEVELS[kind])) for i in (2, 1))
    ratio, beta = here.alpha / there.alpha, forward_variance(here, there)
    # Going up in two steps is going up in one.
    np.testing.assert_allclose(ratio**2 * there.sigma**2 + beta, here.sigma**2, rtol=1e-6)
    x, x0 = 0.7, -0.4
    precision = 1 / there.sigma**2 + ratio**2 / beta
    mean = (there.alpha * x0 / there.sigma**2 + ratio * x / beta) / precision
    q = posterior(here, there)
    np.testing.assert_allclose(q.variance, 1 / precision, rtol=1e-6)
    np.testing.assert_allclose(q.x * x + q.x0 * x0, mean, rtol=1e-6)


def test_noise_added_in_two_steps_has_the_variance_of_one():
    time = jnp.array([200.0, 700.0])
    there, here = (Level(*(v[i] for v in Cosine().level(time))) for i in (0, 1))
    keys = jax.random.split(jax.random.key(1), 3)
    x0 = jnp.full((2, 40_000), 0.5)
    noise = [jax.random.normal(key, x0.shape) for key in keys]
    x = renoise(diffuse(x0, noise[0], there), noise[1], there, here)
    once = diffuse(x0, noise[2], here)
    np.testing.assert_allclose(x.mean(), once.mean(), atol=0.02)
    np.testing.assert_allclose(x.std(), once.std(), rtol=0.02)
    np.testing.assert_allclose(noise_of(x0, once, here), noise[2], atol=1e-4)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="the noise has shape"):
        diffuse(jnp.zeros((2, 3)), jnp.zeros((2, 1)), Level(jnp.ones(2), jnp.ones(2)))
    with pytest.raises(ValueError, match="standard deviation"):
        Preconditioned(0.0)
