"""Laws of sampling: what an oracle and normal data must give, rows, scans, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.diffusion import (
    DDIM,
    DDPM,
    EDM,
    X0,
    Cosine,
    DPMSolver2M,
    Epsilon,
    Grid,
    Heun,
    Level,
    Linear,
    UniPC,
    V,
    denoiser,
    denoising_step,
    forward_variance,
    karras,
    moves,
    prior,
    sample,
    trailing,
    trajectory,
)
from jaxdl.diffusion.sampler import State
from tests.diffusion.names import named

SHAPE = (4, 5, 2)
B = 3
FLOWS = [DDIM(), Heun(), DPMSolver2M(), UniPC(1), UniPC(2), UniPC(3)]
CHAINS = [DDPM(), DDPM(forward_variance), DDIM(1.0), DDIM(0.5)]
GRIDS = {
    "trailing": trailing(Linear(), 7),
    "all": trailing(Cosine(23), 23),
    "karras": karras(Cosine(), 9),
    "EDM": karras(EDM(), 9),
}
each_grid = pytest.mark.parametrize("kind", ["all", "EDM"])
some_solvers = pytest.mark.parametrize("solver", [DDPM(), DDIM(0.5), Heun(), UniPC()], ids=named)
each_solver = pytest.mark.parametrize("solver", FLOWS + CHAINS, ids=named)


def keys(b=B, seed=0):
    return jax.random.split(jax.random.key(seed), b)


def mixing(x, time):
    """A denoiser with no special form, each row for itself."""
    steepness = jnp.log1p(time)[:, None, None, None]
    return jnp.tanh(x + jnp.roll(x, 1, axis=2) / (1 + steepness)) * 0.8


@each_grid
@each_solver
def test_an_oracle_gives_what_it_knows(solver, kind):
    images = jnp.array(np.random.default_rng(1).normal(size=(B, *SHAPE)), jnp.float32)
    x = prior(keys(), SHAPE, GRIDS[kind])
    out = trajectory(lambda x, time: images, x, GRIDS[kind], solver=solver, keys=keys())
    np.testing.assert_allclose(out.x[-1], images, atol=1e-5)
    np.testing.assert_array_equal(out.x0, jnp.broadcast_to(images[None], out.x0.shape))


@each_grid
@pytest.mark.parametrize("solver", [DDPM(), DDIM(0.5), DPMSolver2M(), UniPC(3)], ids=named)
def test_under_an_oracle_each_level_has_its_own_noise(solver, kind):
    """x - alpha x_0 keeps mean 0 and standard deviation sigma, as q(x_t | x_0) has."""
    n, grid = 4000, GRIDS[kind]
    if kind == "all":
        grid = grid[15:]
    x0 = jnp.full((n, 1), 0.7)
    x = grid.level.alpha[0] * x0 + prior(keys(n), (1,), grid)
    out = trajectory(lambda x, time: jnp.full_like(x, 0.7), x, grid, solver=solver, keys=keys(n))
    for i in range(grid.steps):
        alpha, sigma = grid.there.alpha[i], grid.there.sigma[i]
        left = np.asarray(out.x[i]) - alpha * 0.7
        assert abs(left.mean()) <= 4 * sigma / np.sqrt(n) + 1e-6
        assert abs(left.std() - sigma) <= 4 * sigma / np.sqrt(2 * n) + 1e-6


def test_dpm_solver_is_the_papers_algorithm():
    """An inverted ratio of steps keeps the order, so that only the formula tells it."""
    grid = GRIDS["trailing"]
    alpha, sigma = grid.level
    steps = np.log(alpha[:-1] / sigma[:-1])
    x = first = np.asarray(prior(keys(), SHAPE, grid))
    before = np.zeros_like(x)
    for i in range(grid.steps):
        m = np.asarray(mixing(jnp.asarray(x, jnp.float32), jnp.full(B, grid.time[i])))
        d = m
        if 0 < i < grid.steps - 1:
            r = (steps[i] - steps[i - 1]) / (steps[i + 1] - steps[i])
            d = (1 + 1 / (2 * r)) * m - 1 / (2 * r) * before
        shrink = alpha[i] * sigma[i + 1] / (alpha[i + 1] * sigma[i])  # e^-h
        x, before = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (shrink - 1) * d, m
    out = sample(mixing, jnp.asarray(first), grid, solver=DPMSolver2M())
    np.testing.assert_allclose(out, x, atol=1e-5)


def test_ddim_with_eta_one_is_ddpm():
    for grid in GRIDS.values():
        for a, b in zip(DDIM(1.0).plan(grid), DDPM().plan(grid), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", [*FLOWS[1:4], DDPM(), DDIM(0.5)], ids=named)
def test_one_scaling_is_the_other(solver):
    """The same walk over sigma / alpha, preserving or not, gives the same x / alpha."""
    preserving = karras(Linear(), 9)
    exploding = Grid(preserving.time, Level(np.ones(10), preserving.level.ratio))
    x = prior(keys(), SHAPE, preserving)
    scale = preserving.level.alpha[0]

    def denoise(x, time):  # sees x as the preserving process has it
        alpha = Linear().level(time).alpha[:, None, None, None]
        return mixing(alpha * x, time)

    run = functools.partial(trajectory, solver=solver, keys=keys())
    a, b = run(mixing, x, preserving), run(denoise, x / scale, exploding)
    alpha = preserving.there.alpha[:, None, None, None, None]
    np.testing.assert_allclose(a.x, b.x * alpha, atol=2e-4)


@some_solvers
def test_a_scan_is_a_python_loop_and_the_last_of_the_trajectory_is_the_sample(solver):
    grid = GRIDS["trailing"]
    x = prior(keys(), SHAPE, grid)
    step = denoising_step(mixing, solver, keys())
    state, way = State(x, solver.start(x)), moves(grid, solver)
    seen = []
    for i in range(grid.steps):
        state, y = step(state, jax.tree.map(lambda leaf, i=i: leaf[i], way))
        seen.append(y)
    kept = trajectory(mixing, x, grid, solver=solver, keys=keys())
    assert kept.x.shape == kept.x0.shape == (grid.steps, B, *SHAPE)
    np.testing.assert_allclose(kept.x, jnp.stack([y.x for y in seen]), atol=1e-5)
    np.testing.assert_allclose(kept.x0, jnp.stack([y.x0 for y in seen]), atol=1e-5)
    last = sample(mixing, x, grid, solver=solver, keys=keys())
    np.testing.assert_allclose(last, kept.x[-1], atol=1e-6)


@some_solvers
def test_neighbours_change_nothing(solver):
    grid = GRIDS["karras"]
    run = functools.partial(sample, mixing, solver=solver)
    x = prior(keys(), SHAPE, grid)
    whole = run(x, grid, keys=keys())
    order = jnp.array([2, 0])
    np.testing.assert_array_equal(prior(keys()[order], SHAPE, grid), x[order])
    moved = run(x[order], grid, keys=keys()[order])
    np.testing.assert_allclose(moved, whole[order], atol=1e-6)
    assert np.abs(whole[0] - whole[1]).max() > 0.1
    other = run(x, grid, keys=keys(seed=5))
    assert (np.abs(other - whole).max() > 0.01) == solver.draws


def test_draws_of_steps_differ_from_each_other_and_from_the_prior():
    grid, seen = GRIDS["trailing"], []
    x = prior(keys(), SHAPE, grid)
    out = trajectory(lambda x, time: jnp.zeros_like(x), x, grid, solver=DDPM(), keys=keys())
    plan = DDPM().plan(grid)
    before = [x, *out.x]
    for i in range(grid.steps - 1):
        seen.append(np.ravel(before[i + 1] - plan.x[i] * before[i]) / plan.noise[i])
    seen.append(np.ravel(x) / grid.level.sigma[0])
    correlation = np.corrcoef(np.stack(seen)) - np.eye(len(seen))
    assert np.abs(correlation).max() < 0.5
    assert abs(np.std(seen) - 1) < 0.1


def test_the_grid_may_begin_and_end_anywhere():
    """Half of a walk, and the other half after it, is the whole walk."""
    grid = GRIDS["trailing"]
    x = prior(keys(), SHAPE, grid)
    run = functools.partial(sample, mixing, solver=DDIM())
    halves = run(run(x, grid[:4]), grid[3:])
    np.testing.assert_allclose(halves, run(x, grid), atol=1e-6)
    assert np.isfinite(sample(mixing, x, grid[:4], solver=DPMSolver2M())).all()
    assert np.isfinite(sample(mixing, x, grid[:4], solver=UniPC(3))).all()


@pytest.mark.parametrize("solver", FLOWS, ids=named)
def test_clean_data_are_never_asked_about(solver):
    asked = []

    def denoise(x, time):
        jax.debug.callback(lambda at: asked.append(float(at[0])), time)
        return mixing(x, time)

    grid = GRIDS["trailing"]
    out = sample(denoise, prior(keys(), SHAPE, grid), grid, solver=solver)
    jax.effects_barrier()
    assert np.isfinite(out).all()
    assert np.isfinite(asked).all()
    assert len(asked) == (2 * grid.steps - 1 if solver == Heun() else grid.steps)


@pytest.mark.parametrize("solver", [DDPM(), Heun(), UniPC()], ids=named)
def test_memory_does_not_grow_with_the_steps(solver):
    def temporary(run, steps):
        grid = trailing(Linear(), steps)
        x = jnp.zeros((B, *SHAPE))
        compiled = jax.jit(lambda x: run(mixing, x, grid, solver=solver, keys=keys())).lower(x)
        memory = compiled.compile().memory_analysis()
        return memory.temp_size_in_bytes, memory.output_size_in_bytes

    few, many = temporary(sample, 10), temporary(sample, 160)
    image = B * np.prod(SHAPE) * 4
    assert many[1] == few[1]
    # But for a number a step, of which XLA makes keys before the loop.
    assert many[0] - few[0] <= 150 * 4
    assert temporary(trajectory, 160)[1] - temporary(trajectory, 10)[1] >= 150 * image


def test_float16_estimates_leave_x_as_it_is():
    grid = GRIDS["trailing"]
    x = prior(keys(), SHAPE, grid)
    for solver in (DDIM(), Heun(), UniPC()):
        out = sample(lambda x, t: mixing(x, t).astype(jnp.bfloat16), x, grid, solver=solver)
        assert out.dtype == jnp.float32


def test_what_cannot_be_meant_is_refused(unchecked):
    grid = GRIDS["trailing"]
    x = prior(keys(), SHAPE, grid)
    with pytest.raises(ValueError, match="needs keys"):
        sample(mixing, x, grid, solver=DDPM())
    for few in (keys()[0], keys()[:1]):
        with pytest.raises(ValueError, match="3 rows need as many keys"):
            sample(mixing, x, grid, solver=DDPM(), keys=few)
    with pytest.raises(ValueError, match="not of shape"):
        prior(keys()[0], SHAPE, grid)
    with pytest.raises(ValueError, match="answers with shape"):
        sample(lambda x, time: x[..., :1], x, grid, solver=DDIM())
    for prediction in (V(), Epsilon(), X0()):  # which would make it x's own, by broadcasting
        narrow = denoiser(lambda x, time: x[..., :1], Linear(), prediction)
        with pytest.raises(ValueError, match="answers with shape"):
            sample(narrow, x, grid, solver=DDIM())
    with pytest.raises(ValueError, match="eta"):
        DDIM(-0.1)
    with pytest.raises(ValueError, match="more noise"):
        sample(mixing, x, grid, solver=DDIM(5.0), keys=keys())
    with pytest.raises(ValueError, match="order"):
        UniPC(0)


def test_solvers_are_values():
    assert DDIM(0.5) == DDIM(0.5) != DDIM(0.6)
    assert len({DDPM(), DDPM(), DDPM(forward_variance), UniPC(2), UniPC(3), Heun()}) == 5
