"""On normal data, whose best denoiser is known, samplers converge to the truth at their order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.diffusion import (
    DDIM,
    DDPM,
    EDM,
    DPMSolver2M,
    Grid,
    Heun,
    Level,
    Linear,
    UniPC,
    forward_variance,
    karras,
    prior,
    sample,
    trailing,
)
from tests.diffusion.gaussian import MEAN, STD, best, flow
from tests.diffusion.names import named

CHAINS = [DDPM(), DDPM(forward_variance), DDIM(1.0), DDIM(0.5)]


def keys(b):
    return jax.random.split(jax.random.key(0), b)


# The error's exponent, measured between 40 and 160 steps: what theory says, and some slack.
ORDERS = [
    (DDIM(), 1),
    (Heun(), 2),
    (DPMSolver2M(), 2),
    (UniPC(1), 2),
    (UniPC(2), 3),
    (UniPC(3), 4),
]


def even(schedule, steps):
    """A grid without the step to clean data, which has an error of its own."""
    return karras(schedule, steps)[:-1]


def uneven(schedule, steps):
    """The same with every third point left out, so that steps are long and short in turn."""
    fine = even(schedule, steps * 3 // 2)
    kept = np.arange(fine.steps + 1) % 3 != 1
    return Grid(fine.time[kept], Level(fine.level.alpha[kept], fine.level.sigma[kept]))


@pytest.mark.parametrize(
    ("schedule", "make"), [(EDM(0.02, 20.0), even), (Linear(), uneven)], ids=["EDM", "Linear"]
)
@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=named)
def test_on_normal_data_the_flow_is_followed_at_the_order_of_the_solver(
    solver, order, schedule, make
):
    """Solvers map x affinely here, so two points tell the mean and the spread of what comes out."""

    def errors(steps):
        grid = make(schedule, steps)
        start = jnp.array([[-1.0], [2.0]]) * grid.level.sigma[0]
        out = np.asarray(sample(best(schedule), start, grid, solver=solver))
        truth = flow(grid.level, start)
        return abs(out.sum() - truth.sum()), abs(np.diff(out - truth, axis=0).item())

    with jax.enable_x64(True):
        coarse, fine = errors(40), errors(160)
    for far, near in zip(coarse, fine, strict=True):
        assert near < 0.05
        measured = np.log(far / near) / np.log(4)
        assert order - 0.25 < measured < order + 0.75, measured


@pytest.mark.parametrize("solver", CHAINS, ids=named)
@pytest.mark.parametrize("schedule", [EDM(0.02, 20.0), Linear()], ids=named)
def test_on_normal_data_the_chains_mean_and_variance_converge_at_order_one(solver, schedule):
    """Both follow an affine recursion, whose factors the step shows of a few points."""

    def moments(steps):
        grid = karras(schedule, steps)[:-1]
        mean, variance = 0.0, grid.level.sigma[0] ** 2
        plan = solver.plan(grid)
        for i in range(grid.steps):
            x0 = best(schedule)(jnp.array([[0.0], [1.0]]), jnp.full(2, grid.time[i]))
            shift, slope = float(x0[0, 0]), float(x0[1, 0] - x0[0, 0])
            gain = plan.x[i] + plan.x0[i, 0] * slope
            mean = gain * mean + plan.x0[i, 0] * shift
            variance = gain**2 * variance + plan.noise[i] ** 2
        alpha, sigma = grid.level.alpha[-1], grid.level.sigma[-1]
        return abs(mean - alpha * MEAN), abs(variance - (alpha * STD) ** 2 - sigma**2)

    with jax.enable_x64(True):
        (_, coarse), (_, fine) = moments(30), moments(120)
        mean, variance = moments(250)
    assert 0.7 < np.log(coarse / fine) / np.log(4) < 1.3
    assert mean < 0.01
    assert variance < 0.05


@pytest.mark.parametrize("solver", [*CHAINS, Heun()], ids=named)
def test_samples_of_normal_data_have_its_mean_and_spread(solver):
    n, grid = 4000, trailing(Linear(), 100)
    x = prior(keys(n), (1,), grid)
    out = np.asarray(sample(best(Linear()), x, grid, solver=solver, keys=keys(n)))
    assert abs(out.mean() - MEAN) < 4 * STD / np.sqrt(n) + 0.01
    assert abs(out.std() - STD) < 4 * STD / np.sqrt(2 * n) + 0.02
