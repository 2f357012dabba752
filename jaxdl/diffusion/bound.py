"""The variational bound on the log-likelihood of images, in bits a dimension.

    -log p(x_0) <= L_T + sum over t from 1 to T - 1 of L_t + L_0

Ho et al. 2020, eq. 5, arXiv:2006.11239, where time counts from 0, as everywhere here: L_T compares
the noisiest level with pure noise, L_t the two ways from time t to t - 1, and L_0 is the code
length of grey values given x at time 0.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdl.diffusion.denoiser import Denoiser, estimate
from jaxdl.diffusion.draws import derive_rows
from jaxdl.diffusion.process import Level, Numbers, diffuse, like, posterior, posterior_variance
from jaxdl.diffusion.schedule import Discrete
from jaxdl.keys import derive
from jaxdl.types import Key

FAR = 1e4  # standard deviations; infinity would do, but not for gradients


class _Tables(NamedTuple):
    """Numbers of each time, (T)."""

    alpha: Numbers
    sigma: Numbers
    x0: Numbers  # how much the posterior's mean depends on x_0
    variance: Numbers  # the posterior's
    model: Numbers  # the model's own variance


@dataclasses.dataclass(frozen=True)
class Bound:
    """The bound of a denoiser under a schedule of T >= 2 steps, for images in [-1, 1].

    Args:
      schedule: the process.
      levels: how many grey values there are: x_0 is one of `levels` evenly spaced numbers, -1 and 1
        among them.
      variance: of the reverse steps, as for `DDPM`. That of the last one, to x_0, is the
        posterior's at time 1, as in the code of Ho et al. and of Nichol & Dhariwal
        (arXiv:2102.09672).
    """

    schedule: Discrete
    levels: int = 256
    variance: Callable[[Level, Level], Numbers] = posterior_variance

    def __post_init__(self):
        if self.schedule.steps < 2 or self.levels < 2:
            steps = self.schedule.steps
            raise ValueError(f"2 steps and 2 levels or more, not {steps} and {self.levels}")

    def estimate(
        self, denoise: Denoiser, x0: Float[Array, "b ..."], keys: Key
    ) -> Float[Array, " b"]:
        """Estimates the bound from one time a row: L_T + T L_t, unbiased, in bits a dimension."""
        draw = self.schedule.draw(derive_rows(keys, "time"))
        time = draw.astype(jnp.int32)
        return self.prior(x0) + self.schedule.steps * self.term(denoise, x0, keys, time=time)

    def total(self, denoise: Denoiser, x0: Float[Array, "b ..."], keys: Key) -> Float[Array, " b"]:
        """Computes the bound with every time, T evaluations, in bits a dimension."""
        return self.prior(x0) + self.terms(denoise, x0, keys).sum(0)

    def terms(self, denoise: Denoiser, x0: Float[Array, "b ..."], keys: Key) -> Float[Array, "t b"]:
        """Computes all T terms but the prior's, L_0 first, in bits a dimension."""

        def at(_: None, time: Int[Array, ""]) -> tuple[None, Float[Array, " b"]]:
            return None, self.term(denoise, x0, keys, time=jnp.full(len(x0), time))

        return jax.lax.scan(at, None, jnp.arange(self.schedule.steps))[1]

    def prior(self, x0: Float[Array, "b ..."]) -> Float[Array, " b"]:
        """Computes L_T, the divergence of q(x_T | x_0) from N(0, 1), in bits a dimension."""
        alpha, sigma = self._tables.alpha[-1], self._tables.sigma[-1]
        nats = 0.5 * (alpha**2 * x0**2 + sigma**2 - 1 - 2 * math.log(sigma))
        return _bits(nats)

    def term(
        self, denoise: Denoiser, x0: Float[Array, "b ..."], keys: Key, *, time: Int[Array, " b"]
    ) -> Float[Array, " b"]:
        """Computes L_t at a whole time a row, L_0 where that is 0, in bits a dimension.

        The noise is drawn by a row's key and time, so that `estimate` meets what `total` does.
        Raises ValueError where estimates of x_0 are not shaped like it.
        """

        def draw(key: Key, at: Int[Array, ""]) -> Array:
            return jax.random.normal(derive(key, "noise", at), x0.shape[1:], x0.dtype)

        tables = jax.tree.map(lambda table: jnp.asarray(table, x0.dtype)[time], self._tables)
        x = diffuse(x0, jax.vmap(draw)(keys, time), Level(tables.alpha, tables.sigma))
        error = x0 - estimate(denoise, x, time.astype(jnp.float32))
        variance, model, scale = (like(v, x0) for v in (tables.variance, tables.model, tables.x0))
        # Both means depend on x in the same way, so only that on x_0 is left of their difference.
        divergence = 0.5 * (
            jnp.log(model / variance) + variance / model - 1 + (scale * error) ** 2 / model
        )
        code = -grey_log_prob(x0, x0 - error, std=jnp.sqrt(model), levels=self.levels)
        return _bits(jnp.where(like(time == 0, x0), code, divergence))

    @functools.cached_property
    def _tables(self) -> _Tables:
        here = self.schedule.table
        before = [np.append(clean, table[:-1]) for clean, table in zip((1, 0), here, strict=True)]
        there = Level(*before)
        to_x0, variance = posterior(here, there)[1:]
        model = np.array(self.variance(here, there))
        model[0] = variance[1]
        # At time 0 there is no posterior to compare with; any number but 0 will do.
        return _Tables(*here, to_x0, np.append(1.0, variance[1:]), model)


def grey_log_prob(
    x0: Float[Array, "b ..."],
    mean: Float[Array, "b ..."],
    *,
    std: Float[Array, "b ..."],
    levels: int,
) -> Float[Array, "b ..."]:
    """Computes the log-probability, in nats, of a grey value under a rounded normal distribution.

    Each of `levels` values from -1 to 1 takes the normal's mass nearer to it than to others; the
    two outermost also take all that lies beyond (Ho et al. 2020, eq. 13).
    """
    half = 1 / (levels - 1)
    low = jnp.where(x0 < half - 1, -FAR, (x0 - mean - half) / std)
    high = jnp.where(x0 > 1 - half, FAR, (x0 - mean + half) / std)
    # In the lower tail, where the logarithm of the distribution function keeps its precision.
    flip = low + high > 0
    low, high = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
    upper = jax.scipy.special.log_ndtr(high)
    return upper + jnp.log(-jnp.expm1(jax.scipy.special.log_ndtr(low) - upper))


def _bits(nats: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Averages over all axes but the first, and changes the unit."""
    return nats.mean(tuple(range(1, nats.ndim))) / math.log(2)
