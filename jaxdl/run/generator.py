"""A trained network as a source of images: sampled, seen in the making, or filled in.

What it is told of an image is `given`: rows of integers, which are a label each for a U-Net and the
tokens of a text for a network that reads. `model.absent(given)` is what stands for being told
nothing, and None where the network is never told anything.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import ShapeDtypeStruct
from jaxtyping import Array, Bool, Float, Int

from jaxdl.backend import CompilationCache
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
from jaxdl.errors import UserError
from jaxdl.interop.safetensors import check_parameters, flatten, load_model
from jaxdl.models import TextToImage, UNet
from jaxdl.run.workdir import Workdir
from jaxdl.types import Key, Params

NOISES = {"cosine": Cosine(), "linear": Linear(), "sigmoid": Sigmoid()}
PREDICTIONS = {"v": V(), "epsilon": Epsilon(), "x0": X0()}
SOLVERS: dict[str, Solver] = {
    "dpm": DPMSolver2M(), "ddim": DDIM(), "ddpm": DDPM(), "heun": Heun(), "unipc": UniPC()
}  # fmt: skip
NoiseName = Literal["cosine", "linear", "sigmoid"]
PredictionName = Literal["v", "epsilon", "x0"]
SolverName = Literal["dpm", "ddim", "ddpm", "heun", "unipc"]
BATCHES = (8, 32, 128)  # images that are sampled at once: a program each

Given = Int[np.ndarray, "b ..."]


class Sampling(NamedTuple):
    """How samples are taken: by which solver, in how many steps, and at what scale of guidance."""

    sampler: SolverName = "dpm"
    steps: int = 20
    guidance: float = 1.0

    def __str__(self) -> str:
        """Says so in a line."""
        guided = "" if self.guidance == 1 else f", guidance {self.guidance:g}"
        return f"by {self.sampler} in {self.steps} steps{guided}"

    @property
    def walk(self) -> dict[str, Any]:
        """What a compiled sampler is made for."""
        return {"sampler": self.sampler, "steps": self.steps}

    @property
    def scale(self) -> Array | None:
        """The scale of guidance; None for 1, which asks the network half as much."""
        return None if self.guidance == 1 else jnp.float32(self.guidance)


@dataclasses.dataclass(frozen=True)
class Generator:
    """A trained network and what its output means; images in [0, 1] come out of it.

    An image depends on what is given of it, the key, and its number in the batch, and on nothing
    else.
    """

    model: UNet | TextToImage
    params: Params
    shape: tuple[int, int, int]
    noise: NoiseName
    prediction: PredictionName
    # As its run sampled, and as it is sampled unless something else is asked for.
    how: Sampling = dataclasses.field(default_factory=Sampling)

    @property
    def guidable(self) -> bool:
        """Whether it is told anything, without which there is nothing to guide by."""
        return not isinstance(self.model, UNet) or self.model.classes is not None

    def sample(self, given: Given, key: Key, how: Sampling) -> Float[np.ndarray, "b h w c"]:
        """Samples an image for each row; a network that is never told anything does not look."""
        count, start = len(given), 0
        keys = row_keys(key, count)
        images = []
        while start < count:
            # The last batch is filled up, so that a handful of programs serve every number.
            size = next((size for size in BATCHES if size >= count - start), BATCHES[-1])
            rows = np.minimum(np.arange(start, start + size), count - 1)
            images.append(_sample(*self.call(given[rows], how), keys[rows], **how.walk))
            start += size
        return np.concatenate(images)[:count]

    def reverse(self, given: Given, key: Key, how: Sampling) -> Float[np.ndarray, "n b h w c"]:
        """Samples, and returns the images after each of the n steps, the noise before the first."""
        keys = row_keys(key, len(given))
        return np.asarray(_reverse(*self.call(given, how), keys, **how.walk))

    def inpaint(
        self,
        known: Float[np.ndarray, "b h w c"],
        mask: Bool[np.ndarray, "b h w c"],
        given: Given,
        *,
        key: Key,
        how: Sampling,
    ) -> Float[np.ndarray, "b h w c"]:
        """Samples what is not known, where the mask is false, of images in [0, 1]; by DDPM."""
        keys, image = row_keys(key, len(given)), jnp.asarray(known, jnp.float32) * 2 - 1
        walk = how._replace(sampler="ddpm").walk
        made = _inpaint(*self.call(given, how), keys, known=image, mask=mask, **walk)
        return np.asarray(made)

    def call(self, given: Given, how: Sampling) -> tuple[Constant, Params, Given, Array | None]:
        """Lists what every compiled sampler takes first; scales share a program, but for 1."""
        constant = Constant(self.model, self.shape, self.noise, self.prediction)
        return constant, self.params, given, how.scale


class Constant(NamedTuple):
    """What a compiled sampler depends on, beside the parameters."""

    model: UNet | TextToImage
    shape: tuple[int, int, int]
    noise: NoiseName
    prediction: PredictionName

    def grid(self, sampler: SolverName, steps: int) -> Grid:
        """Makes the noise levels to walk through."""
        # Heun's method corrects by the slope where a step ends. A first step from next to no signal
        # to a good deal of it, as evenly spaced times have it, would be corrected beyond measure.
        spaced = karras if sampler == "heun" and steps > 1 else trailing
        return spaced(NOISES[self.noise], steps)

    def denoiser(self, params: Params, given: Array, scale: Array | None) -> Denoiser:
        """Makes the denoiser of these rows, guided by a scale where there is one."""

        def denoise(x: Array, time: Array, given: Array | None) -> Array:
            network: Any = lambda x, time: self.model.apply(  # noqa: E731
                {"params": params}, x, time, given, train=False
            )
            return denoiser(network, NOISES[self.noise], PREDICTIONS[self.prediction])(x, time)

        absent = self.model.absent(given)
        if absent is None:
            return clip(lambda x, time: denoise(x, time, None))
        if scale is None:
            return clip(lambda x, time: denoise(x, time, given))
        both = jnp.concatenate([given, absent])
        return clip(guide_doubled(lambda x, time: denoise(x, time, both), scale))


@functools.partial(jax.jit, static_argnames=("it", "sampler", "steps"))
def _sample(
    it: Constant, params: Params, given: Array, scale: Array | None, keys: Key, *,
    sampler: SolverName, steps: int,
) -> Array:  # fmt: skip
    grid, denoise = it.grid(sampler, steps), it.denoiser(params, given, scale)
    x = sample(denoise, prior(keys, it.shape, grid), grid, solver=SOLVERS[sampler], keys=keys)
    return to_pictures(x)


@functools.partial(jax.jit, static_argnames=("it", "sampler", "steps"))
def _reverse(
    it: Constant, params: Params, given: Array, scale: Array | None, keys: Key, *,
    sampler: SolverName, steps: int,
) -> Array:  # fmt: skip
    grid, denoise = it.grid(sampler, steps), it.denoiser(params, given, scale)
    x = prior(keys, it.shape, grid)
    walked = trajectory(denoise, x, grid, solver=SOLVERS[sampler], keys=keys).x
    return to_pictures(jnp.concatenate([x[None], walked]))


@functools.partial(jax.jit, static_argnames=("it", "sampler", "steps"))
def _inpaint(
    it: Constant, params: Params, given: Array, scale: Array | None, keys: Key, *, known: Array,
    mask: Array, sampler: SolverName, steps: int,
) -> Array:  # fmt: skip
    grid, denoise = it.grid(sampler, steps), it.denoiser(params, given, scale)
    solver = Resample(Inpaint(DDPM(), known, mask), times=3)
    return to_pictures(sample(denoise, prior(keys, it.shape, grid), grid, solver=solver, keys=keys))


def load_generator(
    workdir: Path, kind: type[UNet | TextToImage]
) -> tuple[Generator, dict[str, Any]]:
    """Reads what a run has exported, and what is said about it.

    Raises UserError where there is none, a network of another kind, or one whose parameters are
    not those of the network as it is now.
    """
    CompilationCache()
    folder = Workdir(workdir).model
    model, params, _, about = load_model(folder)
    if not isinstance(model, kind) or "prediction" not in about:
        raise UserError(f"{folder} holds no generator of images of this kind")
    shape = tuple(about["image_shape"])
    x, time = ShapeDtypeStruct((1, *shape), jnp.float32), ShapeDtypeStruct((1,), jnp.float32)
    tokens = [ShapeDtypeStruct((1, 1), jnp.int32)] if kind is TextToImage else []
    check_parameters(flatten(params), model, x, time, *tokens, where=str(folder))
    how = Sampling(**about.get("sampling", {}))
    return Generator(model, params, shape, about["noise"], about["prediction"], how), about


def to_pictures(x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
    """Takes [-1, 1] to [0, 1], and cuts off what lies outside."""
    return jnp.clip((x + 1) / 2, 0, 1)
