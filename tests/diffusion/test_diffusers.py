"""Parity with `diffusers`: one network, their scheduler or ours, the same x at each step."""

import functools
import warnings

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
    Heun,
    Linear,
    Preconditioned,
    UniPC,
    V,
    at_times,
    clip,
    denoiser,
    diffuse,
    dynamic_threshold,
    forward_variance,
    karras,
    leading,
    prior,
    scale_inputs,
    trailing,
    trajectory,
)
from jaxdl.diffusion.draws import derive_rows, normal_rows
from tests.diffusion.names import named

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its imports of others say is not ours to mend
    diffusers = pytest.importorskip("diffusers")

# Their schedulers hand tensors to NumPy in a way that its version 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (3, 4, 5, 2)
STEPS = 20
KEYS = jax.random.split(jax.random.key(7), SHAPE[0])
PREDICTIONS = {"epsilon": Epsilon(), "sample": X0(), "v_prediction": V()}
THEIRS = {
    Linear(): {"beta_schedule": "linear"},
    Cosine(): {"beta_schedule": "squaredcos_cap_v2"},
}


def network(x, time):
    """A network of no special form, in NumPy, so that both sides run the same one."""
    time = np.asarray(time, x.dtype).reshape(-1, 1, 1, 1)
    return np.tanh(x + np.roll(x, 1, axis=2) / (1 + time / 300)) * 0.7 + 0.1 * np.sin(time / 300)


def ours(x, time):
    return jax.pure_callback(network, jax.ShapeDtypeStruct(x.shape, x.dtype), x, time)


def walk(scheduler, x, step=None):
    """Runs their scheduler on `network`; returns x before and after each of its steps."""
    seen = [x := torch.tensor(np.asarray(x))]
    for i, time in enumerate(scheduler.timesteps):
        given = scheduler.scale_model_input(x, time)
        output = torch.tensor(network(given.numpy(), np.full(len(x), float(time))))
        x = (step or scheduler.step)(output, time, x, **({"i": i} if step else {})).prev_sample
        seen.append(x)
    return np.stack(seen)


@functools.cache
def noises():
    """What our samplers draw, step by step."""
    draw = jax.jit(lambda i: normal_rows(derive_rows(KEYS, "step", i), SHAPE[1:]))
    return [torch.tensor(np.asarray(draw(i))) for i in range(STEPS)]


def run(denoise, grid, solver, x=None):
    x = prior(KEYS, SHAPE[1:], grid) if x is None else x
    out = trajectory(denoise, x, grid, solver=solver, keys=KEYS if solver.draws else None)
    return x, np.concatenate([x[None], out.x])


@pytest.mark.parametrize("schedule", THEIRS, ids=named)
def test_the_arrays_are_equal(schedule):
    theirs = diffusers.DDPMScheduler(**THEIRS[schedule])
    np.testing.assert_allclose(schedule.betas(), theirs.betas, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(schedule.alpha_bar, theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)
    solver = diffusers.DPMSolverMultistepScheduler(**THEIRS[schedule])
    np.testing.assert_allclose(schedule.table.alpha, solver.alpha_t, rtol=1e-4)
    np.testing.assert_allclose(schedule.table.sigma, solver.sigma_t, rtol=1e-3)
    for spacing, make in (("trailing", trailing), ("leading", leading)):
        theirs = diffusers.DDPMScheduler(timestep_spacing=spacing)
        for steps in (1, 7, 50, 1000):
            theirs.set_timesteps(steps)
            assert make(Linear(), steps).time[:-1].tolist() == theirs.timesteps.tolist()


def test_noising_is_equal():
    x0, noise = (np.random.default_rng(i).normal(size=SHAPE).astype(np.float32) for i in (0, 1))
    time = np.array([3, 500, 999])
    theirs = diffusers.DDPMScheduler()
    level = Linear().level(jnp.asarray(time, jnp.float32))
    arguments = torch.tensor(x0), torch.tensor(noise), torch.tensor(time)
    x = diffuse(jnp.asarray(x0), jnp.asarray(noise), level)
    np.testing.assert_allclose(x, theirs.add_noise(*arguments), atol=1e-5)
    v = V().target(jnp.asarray(x0), jnp.asarray(noise), level)
    np.testing.assert_allclose(v, theirs.get_velocity(*arguments), atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("solver", "variance", "schedule"),
    [(DDPM(), "fixed_small", Linear()), (DDPM(forward_variance), "fixed_large", Cosine())],
    ids=["small", "large"],
)
def test_ddpm(monkeypatch, solver, variance, schedule, prediction):
    options = {"variance_type": variance, "prediction_type": prediction, "clip_sample": False}
    scheduler = diffusers.DDPMScheduler(**THEIRS[schedule], **options)
    scheduler.set_timesteps(STEPS)
    grid = leading(schedule, STEPS)
    draws = iter(noises())
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(module, lambda *args, **kwargs: next(draws))
    x, seen = run(denoiser(ours, schedule, PREDICTIONS[prediction]), grid, solver)
    close(seen, walk(scheduler, x))


@pytest.mark.parametrize(
    ("eta", "prediction"), [(0.0, "epsilon"), (0.6, "sample"), (1.0, "v_prediction")]
)
def test_ddim(eta, prediction):
    scheduler = diffusers.DDIMScheduler(
        prediction_type=prediction, clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(STEPS)
    grid = leading(Linear(), STEPS)
    draws = noises()

    def step(output, time, x, i):
        return scheduler.step(output, time, x, eta=eta, variance_noise=draws[i])

    x, seen = run(denoiser(ours, Linear(), PREDICTIONS[prediction]), grid, DDIM(eta))
    close(seen, walk(scheduler, x, step=step))


@pytest.mark.parametrize("how", ["clip", "dynamic"])
def test_clipping(how):
    options = {"clip_sample": how == "clip", "thresholding": how == "dynamic"}
    scheduler = diffusers.DDIMScheduler(
        prediction_type="v_prediction", sample_max_value=1.5, **options
    )
    scheduler.set_timesteps(STEPS)
    grid = leading(Linear(), STEPS)
    step = functools.partial(scheduler.step, use_clipped_model_output=True)
    denoise = denoiser(lambda x, t: 3 * ours(x, t), Linear(), V())
    denoise = clip(denoise) if how == "clip" else dynamic_threshold(denoise, most=1.5)
    x, seen = run(denoise, grid, DDIM())
    theirs = walk(scheduler, x, step=lambda output, t, x, i: step(3 * output, t, x))
    close(seen, theirs)


TIMES = np.arange(950, 20, -84)
HEUN = {
    "trailing": (Linear(), trailing(Linear(), 12), {"num_inference_steps": 12}),
    "karras": (Linear(), karras(Linear(), 12), {"num_inference_steps": 12}),
    # Without the noisiest times, where alpha is 5e-5 and Heun's step leads far astray, and without
    # the cleanest, where 1 - alpha_bar in float32 leaves their sigma three digits.
    "cosine": (Cosine(), at_times(Cosine(), TIMES), {"timesteps": TIMES.tolist()}),
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("case", HEUN)
def test_heun(case, prediction):
    schedule, grid, steps = HEUN[case]
    scheduler = diffusers.HeunDiscreteScheduler(
        **{"beta_start": 1e-4, "beta_end": 0.02} | THEIRS[schedule],
        prediction_type=prediction,
        timestep_spacing="linspace" if case == "karras" else "trailing",
        use_karras_sigmas=case == "karras",
    )
    scheduler.set_timesteps(**steps)
    x, seen = run(denoiser(ours, schedule, PREDICTIONS[prediction]), grid, Heun())
    # They carry x / alpha, which in float32 would lose digits that we keep. Of their half steps
    # every second one ends a step, and so does the last one.
    theirs = walk(scheduler, np.asarray(x, np.float64) / grid.level.alpha[0])
    theirs = np.concatenate([theirs[::2], theirs[-1:]])
    close(seen, theirs * grid.level.alpha[:, None, None, None, None])


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [(Linear(), "epsilon"), (Linear(), "sample"), (Cosine(), "v_prediction")],
    ids=named,
)
@pytest.mark.parametrize(
    ("solver", "name", "order"),
    [
        (DPMSolver2M(), "DPMSolverMultistepScheduler", 2),
        (UniPC(1), "UniPCMultistepScheduler", 1),
        (UniPC(2), "UniPCMultistepScheduler", 2),
        (UniPC(3), "UniPCMultistepScheduler", 3),
    ],
    ids=named,
)
def test_multistep(solver, name, order, schedule, prediction):
    options = {"timestep_spacing": "trailing", "solver_order": order}
    make = getattr(diffusers, name)
    scheduler = make(**THEIRS[schedule], prediction_type=prediction, **options)
    scheduler.set_timesteps(STEPS)
    grid = trailing(schedule, STEPS)
    assert scheduler.timesteps.tolist() == grid.time[:-1].tolist()
    x, seen = run(denoiser(ours, schedule, PREDICTIONS[prediction]), grid, solver)
    close(seen, walk(scheduler, x))


def test_edm():
    """EDM's own preconditioning and grid, by their Euler and DPM-Solver++ schedulers."""
    prediction, schedule = Preconditioned(0.5), EDM()
    grid = karras(schedule, 12)
    denoise = denoiser(scale_inputs(ours, schedule, prediction), schedule, prediction)
    pairs = (
        (DDIM(), diffusers.EDMEulerScheduler()),
        (DPMSolver2M(), diffusers.EDMDPMSolverMultistepScheduler()),
    )
    for solver, scheduler in pairs:
        scheduler.set_timesteps(12)
        np.testing.assert_allclose(grid.level.sigma, scheduler.sigmas, rtol=1e-5)
        x, seen = run(denoise, grid, solver)
        close(seen, walk(scheduler, x))


def close(ours, theirs):
    """Within 1e-4, or that part of the largest number of a step where numbers leave unit scale."""
    largest = np.abs(theirs).max((1, 2, 3, 4))
    error = np.abs(ours - theirs).max((1, 2, 3, 4)) / np.maximum(largest, 1)
    assert len(ours) == len(theirs)
    assert largest.min() > 0.4
    assert error.max() < 1e-4, error
