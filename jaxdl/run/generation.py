"""What every experiment that generates images shares: its options, and its loss."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8

from jaxdl.diffusion import denoising_loss
from jaxdl.errors import UserError
from jaxdl.keys import derive
from jaxdl.metrics import Mean
from jaxdl.models import TextToImage, UNet
from jaxdl.models.apply import apply
from jaxdl.rows import choose_rows
from jaxdl.run.cli import VerbConfig
from jaxdl.run.generator import (
    NOISES,
    PREDICTIONS,
    Generator,
    NoiseName,
    PredictionName,
    Sampling,
    SolverName,
)
from jaxdl.run.hosts import gathered
from jaxdl.run.images import ImageConfig, prepare
from jaxdl.run.workdir import Workdir
from jaxdl.train import Aux, Loss, TrainState
from jaxdl.types import Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig(ImageConfig):
    """Options of every experiment that generates images, which it takes to lie in [-1, 1]."""

    mean: float = 0.5
    """Subtracted from images in [0, 1]."""
    std: float = 0.5
    """Divided by, after that."""
    channels: Literal[1, 3] = 1
    """Grey is repeated for 3; colours are mixed to grey for 1."""

    width: int = 32
    """Channels of the first level of the U-Net."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Of the width, one a level; each level has half the size of the one before."""
    blocks: int = 2
    """Blocks a level, on the way down and on the way up."""
    attention: tuple[bool, ...] = (False, False, True)
    """Whether a level has attention."""
    heads: int = 4
    """Heads of every attention."""
    patch: int = 1
    """Pixels a side of the squares that the U-Net takes for its pixels."""
    dropout: float = 0.1
    """Probability of dropping a unit within a block."""

    noise: NoiseName = "cosine"
    """How noise grows with diffusion time."""
    prediction: PredictionName = "v"
    """What the network outputs."""
    sampler: SolverName = "dpm"
    """How samples are taken in evaluation, and by the verb `sample` unless it is told."""
    sampler_steps: int = 20
    """Steps of that sampler."""
    guidance: float = 1.0
    """Scale of its guidance; 1 is none."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        super().__post_init__()
        for name in ("mean", "std"):
            self._require(getattr(self, name) == 0.5, name, "must be 0.5: images lie in [-1, 1]")
        for name in ("width", "blocks", "heads", "patch", "sampler_steps"):
            self._require(getattr(self, name) > 0, name, "must be above 0")
        self._require(min(self.multipliers, default=0) > 0, "multipliers", "must be above 0")
        self._require(0 <= self.dropout < 1, "dropout", "must lie in [0, 1)")
        most = NOISES[self.noise].steps
        self._require(self.sampler_steps <= most, "sampler_steps", f"must be at most {most}")
        self._require(math.isfinite(self.guidance), "guidance", "must be finite")
        levels = len(self.multipliers)
        self._require(
            len(self.attention) == levels, "attention", "must be as many as --multipliers"
        )
        self._require_multiple(self.patch * 2 ** (levels - 1))

    def _require_withheld(self, share: float) -> None:
        """Refuses guidance away from a network that training never makes."""
        what = "must be 1: nothing is withheld in training, so there is nothing to guide away from"
        self._require(self.guidance == 1 or share > 0, "guidance", what)

    @property
    def sampling(self) -> Sampling:
        """How samples are taken in evaluation."""
        return Sampling(self.sampler, self.sampler_steps, self.guidance)

    @property
    def network(self) -> dict[str, Any]:
        """The options of the U-Net, by its own names."""
        names = ("channels", "width", "multipliers", "blocks", "attention", "heads", "patch")
        return {name: getattr(self, name) for name in (*names, "dropout", "dtype")}

    @property
    def about(self) -> dict[str, Any]:
        """What has to be known of an exported network, to sample from it."""
        return {
            "image_shape": self.input_shape, "noise": self.noise, "prediction": self.prediction,
            "sampling": self.sampling._asdict(),
        }  # fmt: skip

    def generator(self, model: UNet | TextToImage, state: TrainState) -> Generator:
        """Makes a source of images of a state in training."""
        weights, shape = gathered(state.weights), self.input_shape
        return Generator(model, weights, shape, self.noise, self.prediction, self.sampling)


def make_loss(
    config: GenerationConfig, model: UNet | TextToImage, given: str | None, *, withheld: float
) -> Loss:
    """Makes the squared error of what the network predicts of noisy images, a number an image.

    The network is told `batch[given]`, and while training nothing in a share `withheld` of the
    rows (Ho and Salimans 2022, algorithm 1, arXiv:2207.12598); with None it is told nothing.
    """

    def loss(params, model_state, batch, key, *, train):
        x0 = prepare(config, batch["image"], derive(key, "augment") if train else None)
        told = None if given is None else batch[given]
        if train and told is not None:
            drop = jax.random.bernoulli(derive(key, "labels"), withheld, (len(told),))
            told = choose_rows(drop, model.absent(told), told)
        rngs = {"dropout": derive(key, "dropout")} if train else None

        def network(x, time):
            return apply(model, params, model_state, x, time, told, train=train, rngs=rngs)[0]

        errors = denoising_loss(
            network, x0, image_keys(derive(key, "noise"), batch["image"]),
            schedule=NOISES[config.noise], prediction=PREDICTIONS[config.prediction],
        )  # fmt: skip
        mean = Mean.of(errors.mean((1, 2, 3)), batch.get("mask"))
        return mean, Aux({"loss": mean}, model_state)

    return loss


def image_keys(key: Key, images: UInt8[Array, "b h w c"]) -> Key:
    """Derives a key for each image from its pixels, so that an evaluation does not depend on order.

    Each draws its own noise, whichever batch it is in, and at whichever place.
    """
    pixels = images.reshape(len(images), -1).astype(jnp.uint32)
    weights = jax.random.bits(derive(key, "weights"), pixels.shape[1:], jnp.uint32)
    return jax.vmap(lambda number: derive(key, number))((pixels * weights[None]).sum(1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig(VerbConfig):
    """Options of every verb `sample`."""

    sampler: SolverName | None = None
    """How to get from one noise level to the next [default: as the run]."""
    steps: int | None = None
    """Steps from noise to picture [default: as the run]."""
    guidance: float | None = None
    """1 is the network as it is, more exaggerates what it is told [default: as the run]."""
    seed: int = 0
    """The same seed draws the same pictures."""
    out: Path | None = None
    """Where to write the sheet [default: samples/sample.png in the workdir]."""

    def how(self, generator: Generator) -> Sampling:
        """How samples are taken: as the run took them, but for what is asked otherwise."""
        asked = {name: getattr(self, name) for name in Sampling._fields}
        return generator.how._replace(**{k: v for k, v in asked.items() if v is not None})

    @property
    def path(self) -> Path:
        """Where the sheet goes."""
        return self.out or Workdir(self.workdir).samples / "sample.png"


def check_sampling(generator: Generator, count: int, how: Sampling) -> None:
    """Raises UserError for what cannot be meant, or would change nothing."""
    most = NOISES[generator.noise].steps
    if not 1 <= how.steps <= most:
        raise UserError(f"--steps must lie in [1, {most}], got {how.steps}")
    if count < 1:
        raise UserError(f"--count must be at least 1, got {count}")
    if not math.isfinite(how.guidance):
        raise UserError(f"--guidance must be finite, got {how.guidance}")
    if how.guidance != 1 and not generator.guidable:
        raise UserError(
            f"--guidance {how.guidance:g}: a run without classes has nothing to guide by"
        )
