"""What a network predicts, and the algebra between predictions.

With x = alpha x_0 + sigma noise known, clean data, noise, and any other mixture of the two tell
each other, so a prediction type is an object with three answers: what the network is to output
(`target`), what clean data its output means (`to_x0`), and how much an error of it is one of those
(`gain`).

Hold for all levels, not only for alpha^2 + sigma^2 = 1.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.diffusion.process import Level, Numbers, noise_of


class Prediction(Protocol):
    """A mixture of x_0 and noise that a network can be trained to output."""

    def target(
        self, x0: Float[Array, "b ..."], noise: Float[Array, "b ..."], level: Level
    ) -> Float[Array, "b ..."]:
        """Computes what the network should output."""
        ...

    def to_x0(
        self, output: Float[Array, "b ..."], x: Float[Array, "b ..."], level: Level
    ) -> Float[Array, "b ..."]:
        """Computes the clean data that an output at x means."""
        ...

    def gain(self, level: Level) -> Numbers:
        """Computes |d x_0 / d output|, shaped like the level."""
        ...


@dataclasses.dataclass(frozen=True)
class X0:
    """The clean data themselves."""

    def target(
        self, x0: Float[Array, "b ..."], noise: Float[Array, "b ..."], level: Level
    ) -> Float[Array, "b ..."]:
        """Returns x0."""
        del noise, level
        return x0

    def to_x0(
        self, output: Float[Array, "b ..."], x: Float[Array, "b ..."], level: Level
    ) -> Float[Array, "b ..."]:
        """Returns the output."""
        del x, level
        return output

    def gain(self, level: Level) -> Numbers:
        """Returns 1."""
        return jnp.ones_like(level.alpha)


@dataclasses.dataclass(frozen=True)
class Epsilon:
    """The noise (Ho et al. 2020, eq. 11, arXiv:2006.11239); tells nothing where alpha is 0."""

    def target(
        self, x0: Float[Array, "b ..."], noise: Float[Array, "b ..."], level: Level
    ) -> Float[Array, "b ..."]:
        """Returns the noise."""
        del x0, level
        return noise

    def to_x0(
        self, output: Float[Array, "b ..."], x: Float[Array, "b ..."], level: Level
    ) -> Float[Array, "b ..."]:
        """Computes (x - sigma epsilon) / alpha."""
        alpha, sigma = level.like(x)
        return (x - sigma * output) / alpha

    def gain(self, level: Level) -> Numbers:
        """Computes sigma / alpha."""
        return level.ratio


@dataclasses.dataclass(frozen=True)
class V:
    """v = alpha noise - sigma x_0 (Salimans & Ho 2022, arXiv:2202.00512); fit for all levels."""

    def target(
        self, x0: Float[Array, "b ..."], noise: Float[Array, "b ..."], level: Level
    ) -> Float[Array, "b ..."]:
        """Computes alpha noise - sigma x_0."""
        alpha, sigma = level.like(x0)
        return alpha * noise - sigma * x0

    def to_x0(
        self, output: Float[Array, "b ..."], x: Float[Array, "b ..."], level: Level
    ) -> Float[Array, "b ..."]:
        """Computes (alpha x - sigma v) / (alpha^2 + sigma^2)."""
        alpha, sigma = level.like(x)
        return (alpha * x - sigma * output) / (alpha**2 + sigma**2)

    def gain(self, level: Level) -> Numbers:
        """Computes sigma / (alpha^2 + sigma^2)."""
        return level.sigma / (level.alpha**2 + level.sigma**2)


@dataclasses.dataclass(frozen=True)
class Preconditioned:
    """A mixture of unit variance whatever the level (Karras et al. 2022, eq. 7, arXiv:2206.00364).

    For data of standard deviation `sigma_data`. In EDM's words, of x / alpha and sigma / alpha,

        x_0 = c_skip x + c_out output,

    so the plain error of the output is EDM's weighted loss. With sigma_data 1 it is -v. For what
    the network is given see `jaxdl.diffusion.scale_inputs`.
    """

    sigma_data: float = 0.5

    def __post_init__(self):
        if not self.sigma_data > 0:
            raise ValueError(f"a standard deviation is above 0, not {self.sigma_data}")

    def target(
        self, x0: Float[Array, "b ..."], noise: Float[Array, "b ..."], level: Level
    ) -> Float[Array, "b ..."]:
        """Computes (x_0 - c_skip x) / c_out, in a form that divides by nothing small."""
        alpha, sigma = level.like(x0)
        spread = self.spread(Level(alpha, sigma))
        return (sigma * x0 - alpha * self.sigma_data**2 * noise) / (self.sigma_data * spread)

    def to_x0(
        self, output: Float[Array, "b ..."], x: Float[Array, "b ..."], level: Level
    ) -> Float[Array, "b ..."]:
        """Computes c_skip x + c_out output."""
        here = level.like(x)
        skip = here.alpha * (self.sigma_data / self.spread(here)) ** 2
        return skip * x + self.gain(here) * output

    def gain(self, level: Level) -> Numbers:
        """Computes c_out, sigma sigma_data / sqrt(sigma^2 + alpha^2 sigma_data^2)."""
        return level.sigma * self.sigma_data / self.spread(level)

    def spread(self, level: Level) -> Numbers:
        """Computes the standard deviation of x at a level."""
        return (level.sigma**2 + level.alpha**2 * self.sigma_data**2) ** 0.5


def convert(
    output: Float[Array, "b ..."],
    x: Float[Array, "b ..."],
    level: Level,
    *,
    source: Prediction,
    target: Prediction,
) -> Float[Array, "b ..."]:
    """Turns one prediction at x into another: what a `target` network would have said.

    Not a number where the noise cannot be told from x and x_0, at sigma 0.
    """
    x0 = source.to_x0(output, x, level)
    return target.target(x0, noise_of(x0, x, level), level)
