"""Laws of noise schedules and of the grids that walk through them."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.diffusion import (
    EDM,
    Cosine,
    Grid,
    Level,
    Linear,
    Sigmoid,
    at_times,
    karras,
    leading,
    trailing,
)
from tests.diffusion.names import named

DISCRETE = [Linear(), Cosine(), Sigmoid(), Linear(steps=37, last=0.3), Sigmoid(100, tau=0.5)]
SCHEDULES = [*DISCRETE, EDM()]


@pytest.mark.parametrize("schedule", DISCRETE, ids=named)
def test_the_signal_falls_from_almost_all_to_almost_nothing(schedule):
    alpha_bar = schedule.alpha_bar
    assert alpha_bar.shape == (schedule.steps,)
    assert (np.diff(alpha_bar) < 0).all()
    assert 0.99 < alpha_bar[0] < 1
    assert 0 < alpha_bar[-1] < 0.01
    np.testing.assert_allclose(schedule.table.alpha**2 + schedule.table.sigma**2, 1, rtol=1e-12)


def test_end_points_are_those_of_the_formulas():
    assert Linear(first=0.01, last=0.2).alpha_bar[0] == 1 - 0.01
    assert Linear(first=0.01, last=0.2).betas()[-1] == 0.2
    for schedule in (Cosine(), Sigmoid()):
        assert schedule.betas()[-1] == schedule.most
        assert (schedule.betas()[:-1] < schedule.most).all()


def test_alpha_bar_is_the_formula_of_each_paper():
    u = np.arange(1, 1000) / 1000  # but for the last, which is cut
    f = np.cos((np.append(0, u) + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(Cosine().alpha_bar[:-1], f[1:] / f[0], rtol=1e-9)

    s = 1 / (1 + np.exp(-(6 * u - 3) / 0.7))
    first, last = 1 / (1 + np.exp(3 / 0.7)), 1 / (1 + np.exp(-3 / 0.7))
    np.testing.assert_allclose(
        Sigmoid(tau=0.7).alpha_bar[:-1], (last - s) / (last - first), rtol=1e-9
    )
    betas = 0.1 + np.arange(4) / 3 * 0.3
    expected = [np.prod(1 - betas[: i + 1]) for i in range(4)]
    np.testing.assert_allclose(Linear(4, first=0.1, last=0.4).alpha_bar, expected, rtol=1e-12)


@pytest.mark.parametrize("schedule", DISCRETE, ids=named)
def test_levels_at_whole_times_are_the_table(schedule):
    level = schedule.level(jnp.arange(schedule.steps, dtype=jnp.float32))
    np.testing.assert_allclose(level.alpha, schedule.table.alpha, rtol=2e-6)
    np.testing.assert_allclose(level.sigma, schedule.table.sigma, rtol=2e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_the_signal_to_noise_ratio_falls_with_time_and_points_invert_levels(schedule):
    low, high = schedule.ratios
    ratio = np.geomspace(low, high, 41)
    time, level = schedule.points(ratio)
    assert (np.diff(time) > 0).all()
    seen = schedule.level(jnp.asarray(time, jnp.float32))
    assert (np.diff(seen.snr) < 0).all()
    np.testing.assert_allclose(seen.ratio, ratio, rtol=1e-4)
    np.testing.assert_allclose(level.ratio, ratio, rtol=1e-12)
    np.testing.assert_allclose(seen.alpha, level.alpha, rtol=1e-4)


def test_times_to_train_on():
    keys = jax.random.split(jax.random.key(0), 4000)
    time = np.asarray(Linear(7).draw(keys))
    assert time.dtype == np.float32
    counts = np.bincount(time.astype(int), minlength=7)
    assert len(counts) == 7
    assert np.abs(counts - 4000 / 7).max() < 5 * np.sqrt(4000 / 7)
    log_sigma = np.log(EDM(mean=-1.0, std=0.5).draw(keys))
    assert abs(log_sigma.mean() + 1.0) < 4 * 0.5 / np.sqrt(4000)
    assert abs(log_sigma.std() - 0.5) < 4 * 0.5 / np.sqrt(8000)
    np.testing.assert_array_equal(Linear(7).draw(keys[5:7]), time[5:7])


def test_grids_walk_the_times_they_should():
    schedule = Linear(steps=100, last=0.2)
    assert trailing(schedule, 4).time[:-1].tolist() == [99, 74, 49, 24]
    assert leading(schedule, 4).time[:-1].tolist() == [75, 50, 25, 0]
    for make in (trailing, leading):
        for steps in (1, 3, 7, 100):
            grid = make(schedule, steps)
            assert grid.steps == steps
            assert np.isnan(grid.time[-1])
            index = grid.time[:-1].astype(int)
            np.testing.assert_array_equal(grid.level.alpha, [*schedule.table.alpha[index], 1])
            np.testing.assert_array_equal(grid.level.sigma, [*schedule.table.sigma[index], 0])
    later = trailing(schedule, 4)[2:]
    assert later.time[:-1].tolist() == [49, 24]
    assert (later.here.sigma > later.there.sigma).all()


@pytest.mark.parametrize("schedule", [EDM(), Cosine()], ids=named)
def test_karras_spaces_a_power_of_the_ratio_evenly(schedule):
    grid = karras(schedule, 11, rho=5.0)
    low, high = schedule.ratios
    i = np.arange(11)
    ratio = (high**0.2 + i / 10 * (low**0.2 - high**0.2)) ** 5
    np.testing.assert_allclose(grid.level.ratio[:-1], ratio, rtol=1e-9)
    assert grid.level.ratio[-1] == 0
    if schedule == EDM():
        np.testing.assert_array_equal(grid.time[:-1], grid.level.sigma[:-1])
    else:
        assert (grid.time[0], grid.time[-2]) == (999, 0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Linear(0), "at least 1 step"),
        (lambda: Linear(first=0.0), "rise within"),
        (lambda: Linear(first=0.03, last=0.02), "rise within"),
        (lambda: Linear(last=1.0), "rise within"),
        (lambda: Cosine(offset=0.0), "offset"),
        (lambda: Cosine(most=1.0), "most"),
        (lambda: Sigmoid(start=3.0, end=3.0), "start"),
        (lambda: Sigmoid(tau=0.0), "tau"),
        (lambda: EDM(smallest=0.0), "smallest"),
        (lambda: EDM(smallest=3.0, largest=2.0), "smallest"),
        (lambda: EDM(std=0.0), "standard deviation"),
        (lambda: trailing(Linear(5), 6), "6 steps on a schedule of 5"),
        (lambda: leading(Linear(5), 0), "0 steps"),
        (lambda: at_times(Linear(5), np.array([4, 4, 1])), "fall"),
        (lambda: at_times(Linear(5), np.array([5, 1])), "fall within"),
        (lambda: at_times(Linear(5), np.array([3, 1.5])), "whole"),
        (lambda: at_times(Linear(5), np.array([])), "whole"),
        (lambda: karras(EDM(), 1), "at least 2"),
        (lambda: karras(EDM(), 5, rho=0.0), "rho"),
        (lambda: Grid(np.arange(2.0), Level(np.ones(2), np.array([1.0, 2.0]))), "less noise"),
        (lambda: trailing(Linear(5), 5)[5:], "2 points"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_schedules_are_values():
    assert Cosine(10) == Cosine(10) != Cosine(11)
    assert hash(EDM()) == hash(EDM())
    assert Linear(10).alpha_bar is not None
    assert Linear(10) == Linear(10)


def test_importing_starts_no_backend_and_loads_no_more_than_it_needs():
    code = (
        "import sys, jaxdl.diffusion; from jax._src import xla_bridge as bridge;"
        "heavy = {'tensorflow', 'orbax', 'grain', 'matplotlib', 'sklearn', 'torch', 'flax',"
        " 'optax', 'jaxdl.models', 'jaxdl.data', 'jaxdl.train', 'jaxdl.run'};"
        "print(sorted(heavy & set(sys.modules)), bridge.backends_are_initialized())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[] False"
