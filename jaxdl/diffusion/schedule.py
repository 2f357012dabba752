"""Noise schedules: from diffusion time to a noise level.

Diffusion time is whatever the schedule says, one number a row, float32:

- of a `Discrete` schedule of T steps it is Ho et al.'s step, counted from 0: T - 1 is the noisiest,
  0 the least noisy, and clean data have no time (there, `CLEAN` is the level). Networks are trained
  on the whole numbers; between two of them the logarithm of the noise-to-signal ratio is linear.
- of `EDM` it is sigma itself, the standard deviation of the noise.

Either way more time is more noise. Schedules are frozen dataclasses; their tables are NumPy arrays
in float64, computed when first asked for.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdl.diffusion.process import Level
from jaxdl.types import Key


class Schedule(Protocol):
    """What the rest asks of a schedule."""

    def level(self, time: Float[Array, "*b"]) -> Level:
        """Tells the noise level at a time."""
        ...

    def draw(self, keys: Key) -> Float[Array, " b"]:
        """Draws a time to train on for each row."""
        ...

    @property
    def ratios(self) -> tuple[float, float]:
        """The smallest and the largest noise-to-signal ratio."""
        ...

    def points(self, ratio: np.ndarray) -> tuple[np.ndarray, Level]:
        """Tells the times at which sigma / alpha is `ratio`, and the levels there."""
        ...


class Discrete(abc.ABC):
    """T steps of variance-preserving noise; a subclass says how large each one is."""

    steps: int

    @abc.abstractmethod
    def betas(self) -> np.ndarray:
        """Returns the variance that each step adds, (T), float64, each in (0, 1)."""

    @functools.cached_property
    def alpha_bar(self) -> np.ndarray:
        """The signal's share of the variance, alpha^2, after each step: (T), float64."""
        return np.cumprod(1 - self.betas())

    @functools.cached_property
    def table(self) -> Level:
        """The levels of all whole times, (T), float64."""
        return Level(np.sqrt(self.alpha_bar), np.sqrt(1 - self.alpha_bar))

    def level(self, time: Float[Array, "*b"]) -> Level:
        """Tells the level at times in [0, T - 1]; at whole ones it is the table's, to rounding."""
        log_ratio = jnp.asarray(np.log(self.table.ratio))
        twice = 2 * jnp.interp(time, jnp.arange(self.steps, dtype=log_ratio.dtype), log_ratio)
        return Level(jnp.sqrt(jax.nn.sigmoid(-twice)), jnp.sqrt(jax.nn.sigmoid(twice)))

    def draw(self, keys: Key) -> Float[Array, " b"]:
        """Draws whole times, each of the T equally likely."""
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, self.steps))
        return draw(keys).astype(jnp.float32)

    @property
    def ratios(self) -> tuple[float, float]:
        """The noise-to-signal ratios at time 0 and at time T - 1."""
        return float(self.table.ratio[0]), float(self.table.ratio[-1])

    def points(self, ratio: np.ndarray) -> tuple[np.ndarray, Level]:
        """Tells the times, not whole in general, at which sigma / alpha is `ratio`."""
        time = np.interp(np.log(ratio), np.log(self.table.ratio), np.arange(self.steps))
        alpha = 1 / np.sqrt(1 + ratio**2)
        return time, Level(alpha, alpha * ratio)


@dataclasses.dataclass(frozen=True)
class Linear(Discrete):
    """Variances that grow linearly from `first` to `last` (Ho et al. 2020, arXiv:2006.11239)."""

    steps: int = 1000
    first: float = 1e-4
    last: float = 0.02

    def __post_init__(self):
        _check_steps(self.steps)
        if not 0 < self.first <= self.last < 1:
            raise ValueError(f"variances rise within (0, 1), not from {self.first} to {self.last}")

    def betas(self) -> np.ndarray:
        """Returns T numbers from `first` to `last`."""
        return np.linspace(self.first, self.last, self.steps)


@dataclasses.dataclass(frozen=True)
class Cosine(Discrete):
    """A squared cosine of signal (Nichol & Dhariwal 2021, eq. 17, arXiv:2102.09672).

    alpha_bar = cos^2((u + offset) / (1 + offset) pi / 2) over its value at 0, with u from 0 to 1;
    no step adds more than `most`, without which the last one would leave no signal at all.
    """

    steps: int = 1000
    offset: float = 0.008
    most: float = 0.999

    def __post_init__(self):
        _check_steps(self.steps)
        _check_most(self.most)
        if not self.offset > 0:
            raise ValueError(f"the offset is above 0, not {self.offset}")

    def betas(self) -> np.ndarray:
        """Returns the variances between neighbouring values of alpha_bar."""

        def alpha_bar(u: np.ndarray) -> np.ndarray:
            return np.cos((u + self.offset) / (1 + self.offset) * np.pi / 2) ** 2

        return _betas(alpha_bar, self.steps, most=self.most)


@dataclasses.dataclass(frozen=True)
class Sigmoid(Discrete):
    """A sigmoid of signal (Jabri et al. 2022, arXiv:2212.11972).

    alpha_bar falls from 1 to 0 as sigmoid(-z / tau) does for z from `start` to `end`; no step adds
    more than `most`. (The "sigmoid" of some libraries is another: there the variances of the steps
    are one.)
    """

    steps: int = 1000
    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    most: float = 0.999

    def __post_init__(self):
        _check_steps(self.steps)
        _check_most(self.most)
        if not self.start < self.end:
            raise ValueError(f"start is below end, not {self.start} and {self.end}")
        if not self.tau > 0:
            raise ValueError(f"tau is above 0, not {self.tau}")

    def betas(self) -> np.ndarray:
        """Returns the variances between neighbouring values of alpha_bar."""

        def alpha_bar(u: np.ndarray) -> np.ndarray:
            z = np.append(u * (self.end - self.start) + self.start, [self.start, self.end])
            s = 1 / (1 + np.exp(-z / self.tau))
            return (s[-1] - s[:-2]) / (s[-1] - s[-2])

        return _betas(alpha_bar, self.steps, most=self.most)


@dataclasses.dataclass(frozen=True)
class EDM:
    """Adds noise and keeps the signal; time is sigma (Karras et al. 2022, arXiv:2206.00364).

    Samplers walk from `largest` to `smallest` (their sigma_max and sigma_min). Training draws
    ln(sigma) ~ N(mean, std^2), their table 1, whatever those two are.
    """

    smallest: float = 0.002
    largest: float = 80.0
    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self):
        if not 0 < self.smallest < self.largest < float("inf"):
            raise ValueError(f"0 < smallest < largest, not {self.smallest} and {self.largest}")
        if not self.std > 0:
            raise ValueError(f"a standard deviation is above 0, not {self.std}")

    def level(self, time: Float[Array, "*b"]) -> Level:
        """Tells (1, time)."""
        return Level(jnp.ones_like(time), time)

    def draw(self, keys: Key) -> Float[Array, " b"]:
        """Draws times whose logarithm is normal."""
        return jnp.exp(self.mean + self.std * jax.vmap(jax.random.normal)(keys))

    @property
    def ratios(self) -> tuple[float, float]:
        """The smallest and the largest sigma that samplers meet."""
        return self.smallest, self.largest

    def points(self, ratio: np.ndarray) -> tuple[np.ndarray, Level]:
        """Returns the ratio, which is the time, and (1, ratio)."""
        return ratio, Level(np.ones_like(ratio), ratio)


def _betas(alpha_bar: Callable[[np.ndarray], np.ndarray], steps: int, *, most: float) -> np.ndarray:
    """Computes what each of T equal steps of u from 0 to 1 adds, at most `most`."""
    values = alpha_bar(np.linspace(0, 1, steps + 1))
    return np.minimum(1 - values[1:] / values[:-1], most)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a schedule has at least 1 step, not {steps}")


def _check_most(most: float) -> None:
    if not 0 < most < 1:
        raise ValueError(f"the most that a step adds lies in (0, 1), not {most}")
