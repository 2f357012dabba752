"""A trained U-Net as a source of images: sampled, seen in the making, or filled in."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdl.decode import row_keys
from jaxdl.diffusion import (
    DDIM,
    DDPM,
    X0,
    Cosine,
    Denoiser,
    DPMSolver2M,
    Epsilon,
    Grid,
    Heun,
    Inpaint,
    Linear,
    Resample,
    Sigmoid,
    Solver,
    UniPC,
    V,
    clip,
    denoiser,
    guide_doubled,
    karras,
    prior,
    sample,
    trailing,
    trajectory,
)
from jaxdl.models import UNet
from jaxdl.types import Key, Params

NOISES = {"cosine": Cosine(), "linear": Linear(), "sigmoid": Sigmoid()}
PREDICTIONS = {"v": V(), "epsilon": Epsilon(), "x0": X0()}
SOLVERS: dict[str, Solver] = {
    "dpm": DPMSolver2M(), "ddim": DDIM(), "ddpm": DDPM(), "heun": Heun(), "unipc": UniPC()
}  # fmt: skip
NoiseName = Literal["cosine", "linear", "sigmoid"]
PredictionName = Literal["v", "epsilon", "x0"]
SolverName = Literal["dpm", "ddim", "ddpm", "heun", "unipc"]
BATCH = 128  # images that are sampled at once


class Sampling(NamedTuple):
    """How samples are taken."""

    sampler: SolverName = "dpm"
    steps: int = 20
    guidance: float = 1.0


@dataclasses.dataclass(frozen=True)
class Generator:
    """A trained network and what its output means; images in [0, 1] come out of it.

    An image depends on its label, the key, and its number in the batch, and on nothing else.
    """

    model: UNet
    params: Params
    shape: tuple[int, int, int]
    noise: NoiseName
    prediction: PredictionName

    def sample(
        self, labels: Int[np.ndarray, " b"], key: Key, how: Sampling
    ) -> Float[np.ndarray, "b h w c"]:
        """Samples an image for each label, which an unconditional network does not look at."""
        count = len(labels)
        keys = row_keys(key, count)
        size = min(BATCH, count)
        images = []
        for start in range(0, count, size):
            # The last batch is filled up: its program is there already.
            rows = np.minimum(np.arange(start, start + size), count - 1)
            images.append(_sample(self.constant, self.params, labels[rows], keys[rows], how=how))
        return np.concatenate(images)[:count]

    def reverse(
        self, labels: Int[np.ndarray, " b"], key: Key, how: Sampling
    ) -> Float[np.ndarray, "n b h w c"]:
        """Samples, and returns the images after each of the n steps, the noise before the first."""
        keys = row_keys(key, len(labels))
        return np.asarray(_reverse(self.constant, self.params, labels, keys, how=how))

    def inpaint(
        self,
        known: Float[np.ndarray, "b h w c"],
        mask: Bool[np.ndarray, "b h w c"],
        labels: Int[np.ndarray, " b"],
        *,
        key: Key,
        how: Sampling,
    ) -> Float[np.ndarray, "b h w c"]:
        """Samples what is not known, where the mask is false, of images in [0, 1]; by DDPM."""
        keys, given = row_keys(key, len(labels)), jnp.asarray(known, jnp.float32) * 2 - 1
        return np.asarray(
            _inpaint(self.constant, self.params, labels, keys, known=given, mask=mask, how=how)
        )

    @property
    def constant(self) -> Constant:
        """What a compiled sampler depends on, beside the parameters."""
        return Constant(self.model, self.shape, self.noise, self.prediction)


class Constant(NamedTuple):
    """What a compiled sampler depends on."""

    model: UNet
    shape: tuple[int, int, int]
    noise: NoiseName
    prediction: PredictionName

    def grid(self, how: Sampling) -> Grid:
        """Makes the noise levels to walk through."""
        # Heun's method corrects by the slope where a step ends. A first step from next to no signal
        # to a good deal of it, as evenly spaced times have it, would be corrected beyond measure.
        spaced = karras if how.sampler == "heun" and how.steps > 1 else trailing
        return spaced(NOISES[self.noise], how.steps)

    def denoiser(self, params: Params, labels: Int[Array, " b"], guidance: float) -> Denoiser:
        """Makes the denoiser of these labels, guided where there are any."""

        def denoise(x: Array, time: Array, labels: Array | None) -> Array:
            network: Any = lambda x, time: self.model.apply(  # noqa: E731
                {"params": params}, x, time, labels, train=False
            )
            return denoiser(network, NOISES[self.noise], PREDICTIONS[self.prediction])(x, time)

        if self.model.classes is None:
            return clip(lambda x, time: denoise(x, time, None))
        if guidance == 1:
            return clip(lambda x, time: denoise(x, time, labels))
        both = jnp.concatenate([labels, jnp.full_like(labels, self.model.classes)])
        return clip(guide_doubled(lambda x, time: denoise(x, time, both), guidance))


@functools.partial(jax.jit, static_argnames=("it", "how"))
def _sample(it: Constant, params: Params, labels: Array, keys: Key, *, how: Sampling) -> Array:
    grid, denoise = it.grid(how), it.denoiser(params, labels, how.guidance)
    x = sample(denoise, prior(keys, it.shape, grid), grid, solver=SOLVERS[how.sampler], keys=keys)
    return to_pictures(x)


@functools.partial(jax.jit, static_argnames=("it", "how"))
def _reverse(it: Constant, params: Params, labels: Array, keys: Key, *, how: Sampling) -> Array:
    grid, denoise = it.grid(how), it.denoiser(params, labels, how.guidance)
    x = prior(keys, it.shape, grid)
    steps = trajectory(denoise, x, grid, solver=SOLVERS[how.sampler], keys=keys).x
    return to_pictures(jnp.concatenate([x[None], steps]))


@functools.partial(jax.jit, static_argnames=("it", "how"))
def _inpaint(
    it: Constant, params: Params, labels: Array, keys: Key, *, known: Array, mask: Array,
    how: Sampling,
) -> Array:  # fmt: skip
    grid, denoise = it.grid(how), it.denoiser(params, labels, how.guidance)
    solver = Resample(Inpaint(DDPM(), known, mask), times=3)
    return to_pictures(sample(denoise, prior(keys, it.shape, grid), grid, solver=solver, keys=keys))


def to_pictures(x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
    """Takes [-1, 1] to [0, 1], and cuts off what lies outside."""
    return jnp.clip((x + 1) / 2, 0, 1)
