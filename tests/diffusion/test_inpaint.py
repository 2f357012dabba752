"""Inpainting: what is known stays, and what is not comes to fit it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.diffusion import (
    DDIM,
    DDPM,
    DPMSolver2M,
    Heun,
    Inpaint,
    Linear,
    Resample,
    UniPC,
    prior,
    sample,
    trailing,
    trajectory,
)
from tests.diffusion.names import named

SHAPE = (3, 4, 5, 2)
GRID = trailing(Linear(), 15)
RNG = np.random.default_rng(9)
KNOWN = jnp.array(RNG.uniform(-1, 1, size=SHAPE), jnp.float32)
MASK = jnp.array(RNG.random(size=(3, 4, 5, 1)) < 0.5)
KEYS = jax.random.split(jax.random.key(1), SHAPE[0])
SOLVERS = [DDPM(), Heun(), UniPC()]


def smooth(x, time):
    return 0.7 * jnp.tanh(x + jnp.roll(x, 1, axis=2))


def start():
    return prior(KEYS, SHAPE[1:], GRID)


@pytest.mark.parametrize("solver", [*SOLVERS, Resample(DDPM(), 3)], ids=named)
def test_known_pixels_come_out_as_they_are_and_the_rest_is_made(solver):
    around = Inpaint(solver, KNOWN, MASK)
    out = np.asarray(sample(smooth, start(), GRID, solver=around, keys=KEYS))
    mask = np.broadcast_to(MASK, SHAPE)
    np.testing.assert_array_equal(out[mask], np.asarray(KNOWN)[mask])
    assert np.abs(out[~mask] - np.asarray(KNOWN)[~mask]).min() > 0
    other = np.where(mask, KNOWN, 9.0)  # what is not known has no say
    again = sample(
        smooth, start(), GRID, solver=Inpaint(solver, jnp.asarray(other), MASK), keys=KEYS
    )
    np.testing.assert_array_equal(again, out)


@pytest.mark.parametrize("solver", SOLVERS, ids=named)
def test_nothing_known_is_plain_sampling(solver):
    around = Inpaint(solver, KNOWN, jnp.zeros(SHAPE, bool))
    inpainted = sample(smooth, start(), GRID, solver=around, keys=KEYS)
    plain = sample(smooth, start(), GRID, solver=solver, keys=KEYS)
    np.testing.assert_allclose(inpainted, plain, atol=1e-6)


def test_known_pixels_have_the_noise_of_each_level_on_the_way_fresh_each_time():
    n = 3000
    keys = jax.random.split(jax.random.key(2), n)
    known = jnp.full((n, 2), 0.6)
    around = Inpaint(DDIM(), known, jnp.array([[True, False]]))
    out = trajectory(
        lambda x, time: jnp.zeros_like(x), prior(keys, (2,), GRID), GRID, solver=around, keys=keys
    )
    for i in range(GRID.steps):
        alpha, sigma = GRID.there.alpha[i], GRID.there.sigma[i]
        pixel = np.asarray(out.x[i, :, 0])
        assert abs(pixel.mean() - alpha * 0.6) <= 4 * sigma / np.sqrt(n) + 1e-6
        assert abs(pixel.std() - sigma) <= 4 * sigma / np.sqrt(2 * n) + 1e-6
    assert abs(np.corrcoef(out.x[3, :, 0], out.x[4, :, 0])[0, 1]) < 0.1


# Two pixels that nearly agree, so that what is known of one tells the other.
COVARIANCE = np.array([[1.0, 0.9], [0.9, 1.0]]) * 0.3


def of_pairs(x, time):
    """E[x_0 | x] for x_0 ~ N(0, COVARIANCE)."""
    alpha, sigma = Linear().level(time)
    cov = jnp.asarray(COVARIANCE, jnp.float32)
    noisy = alpha[:, None, None] ** 2 * cov[None] + sigma[:, None, None] ** 2 * jnp.eye(2)[None]
    gain = alpha[:, None, None] * jnp.einsum("ij,bjk->bik", cov, jnp.linalg.inv(noisy))
    return jnp.einsum("bij,bj->bi", gain, x)


def test_resampling_makes_the_rest_fit_what_is_known():
    n = 1500
    keys = jax.random.split(jax.random.key(3), n)
    known = jnp.full((n, 2), 0.8)
    mask = jnp.array([[True, False]])
    grid = trailing(Linear(), 20)

    def filled(solver):
        x = prior(keys, (2,), grid)
        return np.asarray(sample(of_pairs, x, grid, solver=solver, keys=keys)[:, 1])

    once = filled(Inpaint(DDPM(), known, mask))
    often = filled(Resample(Inpaint(DDPM(), known, mask), 10))
    mean, std = 0.9 * 0.8, np.sqrt(0.3 * (1 - 0.9**2))
    assert abs(once.mean() - mean) < 0.4  # it has heard of the other pixel
    assert abs(often.mean() - mean) < 0.08
    assert abs(often.std() - std) < 0.08
    assert abs(often.mean() - mean) < 0.5 * abs(once.mean() - mean)


def test_taking_each_step_once_is_plain_sampling():
    once = sample(smooth, start(), GRID, solver=Resample(DDPM(), 1), keys=KEYS)
    plain = sample(smooth, start(), GRID, solver=DDPM(), keys=KEYS)
    np.testing.assert_allclose(once, plain, atol=1e-6)
    twice = sample(smooth, start(), GRID, solver=Resample(DDPM(), 2), keys=KEYS)
    assert np.abs(twice - plain).max() > 0.1


def test_neighbours_change_nothing():
    solver = Resample(Inpaint(DDPM(), KNOWN, MASK), 2)
    whole = sample(smooth, start(), GRID, solver=solver, keys=KEYS)
    order = jnp.array([2, 0])
    solver = Resample(Inpaint(DDPM(), KNOWN[order], MASK[order]), 2)
    moved = sample(smooth, start()[order], GRID, solver=solver, keys=KEYS[order])
    np.testing.assert_allclose(moved, whole[order], atol=1e-6)


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="remembers"):
        sample(smooth, start(), GRID, solver=Resample(DPMSolver2M(), 2), keys=KEYS)
    with pytest.raises(ValueError, match="at least once"):
        Resample(DDPM(), 0)
    around = Inpaint(DDIM(), KNOWN[:2], MASK[:2])
    with pytest.raises(ValueError, match="the known images"):
        sample(smooth, start(), GRID, solver=around, keys=KEYS)
    soft = Inpaint(DDIM(), KNOWN, MASK.astype(jnp.float32))
    with pytest.raises(ValueError, match="True where a pixel is known"):
        sample(smooth, start(), GRID, solver=soft, keys=KEYS)
    with pytest.raises(ValueError, match="needs keys"):
        sample(smooth, start(), GRID, solver=Inpaint(DDIM(), KNOWN, MASK))
