"""The forward process: how noise is added, and what is known of one level given another.

A noise level is a pair (alpha, sigma), and says all that there is to say:

    q(x_t | x_0) = N(alpha x_0, sigma^2),    that is    x_t = alpha x_0 + sigma noise

Variance-preserving processes (Ho et al. 2020, arXiv:2006.11239) have alpha^2 + sigma^2 = 1, those
of EDM (Karras et al. 2022, arXiv:2206.00364) alpha = 1. The two differ by a factor on x, so nothing
here asks which one it is. How clean a level is, is its signal-to-noise ratio (alpha / sigma)^2.

These are formulas of numbers, so NumPy arrays and JAX arrays will both do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

Numbers = Any  # a NumPy or a JAX array: the formulas are the same


class Level(NamedTuple):
    """A noise level, or many: alpha and sigma have the same shape, () or (b) beside a batch."""

    alpha: Numbers
    sigma: Numbers

    @property
    def snr(self) -> Numbers:
        """The signal-to-noise ratio (alpha / sigma)^2, infinite where there is no noise."""
        return (self.alpha / self.sigma) ** 2

    @property
    def ratio(self) -> Numbers:
        """Noise over signal, sigma / alpha: what EDM calls sigma."""
        return self.sigma / self.alpha

    def like(self, x: Float[Array, "b ..."]) -> Level:
        """Adds axes of size 1, so that one level a row meets a batch x explicitly."""
        return Level(like(self.alpha, x), like(self.sigma, x))


CLEAN = Level(np.float64(1), np.float64(0))


class Posterior(NamedTuple):
    """The coefficients of q(x_there | x_here, x_0) = N(x * x_here + x0 * x_0, variance)."""

    x: Numbers
    x0: Numbers
    variance: Numbers


def like(value: Numbers, x: Float[Array, "b ..."]) -> Numbers:
    """Reshapes one number a row to (b, 1, ...); a single number stays what it is."""
    return value.reshape(*value.shape, *[1] * (x.ndim - 1)) if value.ndim else value


def diffuse(
    x0: Float[Array, "b ..."], noise: Float[Array, "b ..."], level: Level
) -> Float[Array, "b ..."]:
    """Adds noise to clean data: a draw of q(x_t | x_0) where the noise is standard normal.

    x_t = alpha x_0 + sigma noise (Ho et al. 2020, eq. 4). Raises ValueError for unequal shapes.
    """
    if noise.shape != x0.shape:
        raise ValueError(f"the noise has shape {noise.shape}, the data {x0.shape}")
    alpha, sigma = level.like(x0)
    return alpha * x0 + sigma * noise


def noise_of(
    x0: Float[Array, "b ..."], x: Float[Array, "b ..."], level: Level
) -> Float[Array, "b ..."]:
    """Tells the noise that made x of x0, (x - alpha x_0) / sigma; not a number where sigma is 0."""
    alpha, sigma = level.like(x)
    return (x - alpha * x0) / sigma


def forward_variance(here: Level, there: Level) -> Numbers:
    """Computes the variance of q(x_here | x_there), for the way from `there` up to `here`.

    sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, which is Ho et al.'s beta_t where s = t - 1. As the
    variance of the reverse step it is the larger of their two choices (section 3.2).
    """
    return here.sigma**2 - (here.alpha / there.alpha) ** 2 * there.sigma**2


def posterior_variance(here: Level, there: Level) -> Numbers:
    """Computes the variance of q(x_there | x_here, x_0), the smaller choice (Ho et al., eq. 7)."""
    return forward_variance(here, there) * (there.sigma / here.sigma) ** 2


def posterior(here: Level, there: Level) -> Posterior:
    """Computes q(x_there | x_here, x_0) for a cleaner level `there`.

    Ho et al. 2020, eqs. 6 and 7, for any two levels s (there) and t (here), not only neighbours:

        mean = (alpha_t / alpha_s) (sigma_s / sigma_t)^2 x_t + alpha_s (beta / sigma_t^2) x_0

    with beta the forward variance from s to t.
    """
    x = here.alpha / there.alpha * (there.sigma / here.sigma) ** 2
    x0 = there.alpha * forward_variance(here, there) / here.sigma**2
    return Posterior(x, x0, posterior_variance(here, there))


def renoise(
    x: Float[Array, "b ..."], noise: Float[Array, "b ..."], there: Level, here: Level
) -> Float[Array, "b ..."]:
    """Takes x from `there` back up to a noisier level `here`: a draw of q(x_here | x_there)."""
    scale = like(here.alpha / there.alpha, x)
    spread = like(forward_variance(here, there) ** 0.5, x)
    return scale * x + spread * noise
