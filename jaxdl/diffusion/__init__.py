"""Diffusion: networks know nothing of the process, the process nothing of networks.

The parts, each a value or a function that the next one takes:

    schedule    diffusion time -> noise level                 Linear, Cosine, Sigmoid, EDM
    prediction  what a network's output means                 X0, Epsilon, V, Preconditioned
    loss        (network, x_0, keys) -> error an element      denoising_loss, MinSNR
    bound       (denoiser, x_0, keys) -> bits a dimension     Bound
    denoiser    (x, time) -> x_0, and what is put around it   denoiser, clip, guide, ...
    grid        the levels to walk through                    trailing, leading, karras
    solver      from one level to the next                    DDPM, DDIM, Heun, DPMSolver2M, UniPC
    sample      the scan of a solver over a grid              sample, trajectory

Diffusion time is float32, one a row, and grows with the noise: of a schedule of T steps it is in
[0, T - 1], whole numbers in training, with 0 the least noisy level and not clean data; of EDM it is
sigma. Underneath is one algebra, x = alpha x_0 + sigma noise, for all of them; see `process`.

>>> network = functools.partial(model.apply, {"params": params}, train=False)  # doctest: +SKIP
>>> schedule = Cosine()  # doctest: +SKIP
>>> loss = denoising_loss(  # doctest: +SKIP
...     network, images, keys, schedule=schedule, prediction=V(), weighting=MinSNR()
... )
>>> grid = trailing(schedule, 50)  # doctest: +SKIP
>>> denoise = clip(denoiser(network, schedule, V()))  # doctest: +SKIP
>>> sample(denoise, prior(keys, (48, 48, 3), grid), grid, solver=DPMSolver2M())  # doctest: +SKIP
"""

from jaxdl.diffusion.bound import Bound
from jaxdl.diffusion.denoiser import (
    Denoiser,
    Network,
    clip,
    denoiser,
    dynamic_threshold,
    scale_inputs,
)
from jaxdl.diffusion.grid import Grid, at_times, karras, leading, trailing
from jaxdl.diffusion.guidance import guide, guide_doubled
from jaxdl.diffusion.inpaint import Inpaint, Resample
from jaxdl.diffusion.loss import MinSNR, denoising_loss, loss_at
from jaxdl.diffusion.prediction import X0, Epsilon, Preconditioned, Prediction, V, convert
from jaxdl.diffusion.process import (
    Level,
    diffuse,
    forward_variance,
    noise_of,
    posterior,
    posterior_variance,
    renoise,
)
from jaxdl.diffusion.sampler import (
    Solver,
    Trajectory,
    denoising_step,
    moves,
    prior,
    sample,
    trajectory,
)
from jaxdl.diffusion.schedule import EDM, Cosine, Discrete, Linear, Schedule, Sigmoid
from jaxdl.diffusion.solvers import DDIM, DDPM, DPMSolver2M, Heun
from jaxdl.diffusion.unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "EDM",
    "X0",
    "Bound",
    "Cosine",
    "DPMSolver2M",
    "Denoiser",
    "Discrete",
    "Epsilon",
    "Grid",
    "Heun",
    "Inpaint",
    "Level",
    "Linear",
    "MinSNR",
    "Network",
    "Preconditioned",
    "Prediction",
    "Resample",
    "Schedule",
    "Sigmoid",
    "Solver",
    "Trajectory",
    "UniPC",
    "V",
    "at_times",
    "clip",
    "convert",
    "denoiser",
    "denoising_loss",
    "denoising_step",
    "diffuse",
    "dynamic_threshold",
    "forward_variance",
    "guide",
    "guide_doubled",
    "karras",
    "leading",
    "loss_at",
    "moves",
    "noise_of",
    "posterior",
    "posterior_variance",
    "prior",
    "renoise",
    "sample",
    "scale_inputs",
    "trailing",
    "trajectory",
]
