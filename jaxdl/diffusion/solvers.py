"""Solvers of one evaluation a step, and Heun's of two.

All are linear in x, in estimates of x_0 and in noise, with coefficients that depend on the grid
alone. So a solver is a table of numbers, computed in NumPy, float64, and the step that applies it.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdl.diffusion.denoiser import Denoiser, estimate
from jaxdl.diffusion.draws import normal_rows
from jaxdl.diffusion.grid import Grid
from jaxdl.diffusion.process import Level, Numbers, posterior, posterior_variance
from jaxdl.diffusion.sampler import Move, State
from jaxdl.types import Key


class Coefficients(NamedTuple):
    """x_there = x * x_here + sum of x0 * estimates + noise * standard normal noise."""

    x: Numbers  # (n)
    x0: Numbers  # (n, k) of the last k estimates, the newest first
    noise: Numbers  # (n)


class Multistep(abc.ABC):
    """A step that is linear in the last k estimates; a subclass says with which coefficients."""

    remembered: ClassVar[int] = 0  # k - 1

    @property
    def draws(self) -> bool:
        """Whether it draws noise; this one does not."""
        return False

    @abc.abstractmethod
    def plan(self, grid: Grid) -> Coefficients:
        """Computes the coefficients of all steps."""

    def start(self, x: Float[Array, "b ..."]) -> tuple[Array, ...]:
        """Remembers zeros, which the first steps multiply by zero."""
        return (jnp.zeros_like(x),) * self.remembered

    def step(
        self, denoise: Denoiser, state: State, move: Move, keys: Key | None
    ) -> tuple[State, Float[Array, "b ..."]]:
        """Takes one step."""
        c: Coefficients = move.plan
        newest = estimate(denoise, state.x, move.time)
        estimates = (newest, *state.memory)
        x = c.x * state.x + weighted(c.x0, estimates)
        if self.draws:
            assert keys is not None
            x = x + c.noise * normal_rows(keys, x.shape[1:], dtype=x.dtype)
        return State(x, estimates[: self.remembered]), newest


@dataclasses.dataclass(frozen=True)
class DDPM(Multistep):
    """Ancestral sampling: a draw of q(x_there | x_here, x_0), the estimate taken for x_0.

    Ho et al. 2020, algorithm 2, arXiv:2006.11239. `variance` is `posterior_variance` or the larger
    `forward_variance`, their two choices; the last step, to clean data, adds no noise.
    """

    variance: Callable[[Level, Level], Numbers] = posterior_variance

    @property
    def draws(self) -> bool:
        """Yes."""
        return True

    def plan(self, grid: Grid) -> Coefficients:
        """Computes the posterior's coefficients."""
        mean = posterior(grid.here, grid.there)
        noise = np.where(grid.there.sigma > 0, self.variance(grid.here, grid.there), 0) ** 0.5
        return Coefficients(mean.x, mean.x0[:, None], noise)


@dataclasses.dataclass(frozen=True)
class DDIM(Multistep):
    """Keeps as much noise as the next level has (Song et al. 2020, eq. 12, arXiv:2010.02502).

        x_there = alpha x_0 + sqrt(sigma^2 - s^2) epsilon + s noise,   s^2 = eta^2 beta_post

    with beta_post the posterior variance. eta 0 is deterministic: Euler's method for the
    probability flow, of order 1. eta 1 is `DDPM`. The epsilon is the one that goes with x_0, also
    where that was clipped.
    """

    eta: float = 0.0

    def __post_init__(self):
        if not self.eta >= 0:
            raise ValueError(f"eta is at least 0, not {self.eta}")

    @property
    def draws(self) -> bool:
        """Whether eta is above 0."""
        return self.eta > 0

    def plan(self, grid: Grid) -> Coefficients:
        """Computes the coefficients; raises ValueError where eta asks for too much noise."""
        here, there = grid.here, grid.there
        variance = self.eta**2 * posterior_variance(here, there)
        if (variance > there.sigma**2).any():
            raise ValueError(f"eta {self.eta} adds more noise than there is to be on this grid")
        kept = np.sqrt(there.sigma**2 - variance) / here.sigma
        return Coefficients(kept, (there.alpha - kept * here.alpha)[:, None], np.sqrt(variance))


@dataclasses.dataclass(frozen=True)
class DPMSolver2M(Multistep):
    """DPM-Solver++(2M): DDIM on an extrapolation of the last two estimates, of order 2.

    Lu et al. 2022, algorithm 2, arXiv:2211.01095: with h the step in lambda = log(alpha / sigma),

        D = (1 + w) x_0 - w (x_0 of the step before),   w = h / (2 h of the step before)

    The first step, which has none before it, and the one to clean data, where h is infinite, are of
    order 1.
    """

    remembered: ClassVar[int] = 1

    def plan(self, grid: Grid) -> Coefficients:
        """Computes the coefficients."""
        x, x0, noise = DDIM().plan(grid)
        h = np.diff(log_signal(grid))
        w = np.zeros(grid.steps)
        w[1:] = np.where(np.isfinite(h[1:]), h[1:] / h[:-1] / 2, 0)
        return Coefficients(x, x0 * np.stack([1 + w, -w], axis=1), noise)


class HeunCoefficients(NamedTuple):
    """Euler's x_there = x * x_here + x0 * x_0, and how much a change of x_0 on the way moves it."""

    x: Numbers  # (n)
    x0: Numbers  # (n)
    change: Numbers  # (n), 0 where the step ends at clean data


@dataclasses.dataclass(frozen=True)
class Heun:
    """Heun's method for the probability flow, of order 2, two evaluations a step.

    Karras et al. 2022, algorithm 1, arXiv:2206.00364, without added noise. In y = x / alpha, over
    r = sigma / alpha, the flow is dy / dr = (y - x_0) / r for every schedule. With E Euler's step,
    and m the estimate of x_0 made there, the mean of both slopes leads to

        E + (r_here / r_there - 1) / 2 (m - x_0),

    which cancels no large numbers. The step to clean data, where r is 0, is Euler's.

    The mean of two slopes is right where r changes little in a step, as on a grid of `karras`. The
    first step of `trailing` on the cosine schedule divides it by about a thousand, and lands far
    from any image.
    """

    @property
    def draws(self) -> bool:
        """No."""
        return False

    def plan(self, grid: Grid) -> HeunCoefficients:
        """Computes the coefficients."""
        x, x0, _ = DDIM().plan(grid)
        here, there = grid.here, grid.there
        # alpha_there / r_there, written so that nothing is divided by 0.
        safe = np.where(there.sigma > 0, there.sigma, 1)
        change = (here.ratio * there.alpha**2 / safe - there.alpha) / 2
        return HeunCoefficients(x, x0[:, 0], np.where(there.sigma > 0, change, 0))

    def start(self, x: Float[Array, "b ..."]) -> tuple[()]:
        """Remembers nothing."""
        del x
        return ()

    def step(
        self, denoise: Denoiser, state: State, move: Move, keys: Key | None
    ) -> tuple[State, Float[Array, "b ..."]]:
        """Takes one step."""
        del keys
        c: HeunCoefficients = move.plan
        x0 = estimate(denoise, state.x, move.time)
        euler = c.x * state.x + c.x0 * x0

        def corrected() -> Float[Array, "b ..."]:
            return euler + c.change * (estimate(denoise, euler, move.time_there) - x0)

        return State(jax.lax.cond(move.there.sigma > 0, corrected, lambda: euler)), x0


def log_signal(grid: Grid) -> np.ndarray:
    """Computes lambda = log(alpha / sigma) of all points, infinite for clean data."""
    with np.errstate(divide="ignore"):
        return np.log(grid.level.alpha) - np.log(grid.level.sigma)


def weighted(
    weights: Float[Array, " k"], arrays: tuple[Float[Array, "b ..."], ...]
) -> Float[Array, "b ..."]:
    """Sums k arrays, each with its weight; not by a matrix product, which may round to bfloat16."""
    total = weights[0] * arrays[0]
    for weight, array in zip(weights[1:], arrays[1:], strict=True):
        total = total + weight * array
    return total
