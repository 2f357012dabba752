"""The loss: that the weights of errors mean what they say, whatever the network predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.diffusion import (
    EDM,
    X0,
    Cosine,
    Epsilon,
    MinSNR,
    Preconditioned,
    V,
    convert,
    denoising_loss,
    diffuse,
    loss_at,
)
from jaxdl.metrics import Mean
from tests.diffusion.names import named

SHAPE = (3, 4, 5, 2)
RNG = np.random.default_rng(4)
IMAGES, NOISE = (jnp.array(RNG.normal(size=SHAPE), jnp.float32) for _ in range(2))
SCHEDULE, TIME = Cosine(), jnp.array([90.0, 450.0, 820.0])
PREDICTIONS = [X0(), Epsilon(), V(), Preconditioned(0.7)]


def guess(x, time):
    """A guess at x0, which is wrong."""
    return jnp.tanh(x) * (1 - time / 2000)[:, None, None, None]


def saying(prediction):
    """The network that means the same guess, but says it as `prediction`."""

    def network(x, time):
        level = SCHEDULE.level(time)
        return convert(guess(x, time), x, level, source=X0(), target=prediction)

    return network


def loss(prediction, weighting):
    return loss_at(
        saying(prediction),
        IMAGES,
        time=TIME,
        noise=NOISE,
        schedule=SCHEDULE,
        prediction=prediction,
        weighting=weighting,
    )


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=named)
@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_weights_the_error_of_x0_whatever_is_predicted(prediction, gamma):
    alpha, sigma = (np.asarray(v, np.float64) for v in SCHEDULE.level(TIME))
    x = diffuse(IMAGES, NOISE, SCHEDULE.level(TIME))
    weight = np.minimum(alpha**2 / sigma**2, gamma)[:, None, None, None]
    expected = weight * (np.asarray(guess(x, TIME)) - np.asarray(IMAGES)) ** 2
    np.testing.assert_allclose(loss(prediction, MinSNR(gamma)), expected, rtol=1e-3, atol=1e-4)
    below = np.asarray(alpha**2 / sigma**2 < gamma)
    assert below.any()
    assert not below.all()


@pytest.mark.parametrize(
    ("prediction", "weighting"),
    [
        (X0(), jnp.ones_like),
        (Epsilon(), lambda snr: snr),
        (V(), lambda snr: snr + 1),
        (Preconditioned(0.7), lambda snr: snr + 1 / 0.7**2),
    ],
)
def test_the_weightings_that_are_uniform_in_what_is_predicted(prediction, weighting):
    np.testing.assert_allclose(loss(prediction, weighting), loss(prediction, None), rtol=1e-5)


def test_the_plain_loss_is_the_squared_error_of_the_noise():
    x = diffuse(IMAGES, NOISE, SCHEDULE.level(TIME))
    said = np.asarray(saying(Epsilon())(x, TIME))
    np.testing.assert_allclose(loss(Epsilon(), None), (said - np.asarray(NOISE)) ** 2, rtol=1e-5)


@pytest.mark.parametrize("schedule", [Cosine(50), EDM()], ids=named)
def test_rows_draw_for_themselves_and_the_best_network_has_no_loss(schedule):
    keys = jax.random.split(jax.random.key(3), 3)
    seen = []

    def network(x, time):  # knows the images
        seen.append(time)
        level = schedule.level(time)
        alpha, sigma = level.like(x)
        rows = IMAGES[: len(x)] if len(x) == 3 else IMAGES[1:]
        return (x - alpha * rows) / sigma

    def run(images, keys):
        options = {"schedule": schedule, "prediction": Epsilon(), "weighting": MinSNR()}
        return denoising_loss(network, images, keys, **options)

    whole = run(IMAGES, keys)
    assert whole.shape == SHAPE
    assert Mean.of(whole).count == np.prod(SHAPE)
    assert Mean.of(whole).compute() < 1e-5
    assert len(set(seen[0].tolist())) > 1
    run(IMAGES[1:], keys[1:])
    np.testing.assert_array_equal(seen[1], seen[0][1:])


def test_a_network_of_another_shape_is_refused(unchecked):
    with pytest.raises(ValueError, match="shape"):
        denoising_loss(
            lambda x, time: x[..., :1],
            IMAGES,
            jax.random.split(jax.random.key(0), 3),
            schedule=SCHEDULE,
            prediction=V(),
        )
    with pytest.raises(ValueError, match="gamma"):
        MinSNR(0.0)
