"""UniPC, a multistep predictor with a corrector that costs no evaluation of its own."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdl.diffusion.denoiser import Denoiser, estimate
from jaxdl.diffusion.grid import Grid
from jaxdl.diffusion.process import Numbers
from jaxdl.diffusion.sampler import Move, State
from jaxdl.diffusion.solvers import log_signal, weighted
from jaxdl.types import Key


class Correction(NamedTuple):
    """Coefficients of one step; estimates are those of the last p + 1 points, the newest first.

    corrected = keep * x + last * (corrected x of the step before) + sum of correct * estimates
    x_there   = x * corrected + sum of predict * estimates
    """

    keep: Numbers  # (n)
    last: Numbers  # (n)
    correct: Numbers  # (n, p + 1)
    x: Numbers  # (n)
    predict: Numbers  # (n, p + 1)


class Memory(NamedTuple):
    """The corrected x of the step before, and the estimates of the last p."""

    last: Float[Array, "b ..."]
    estimates: tuple[Float[Array, "b ..."], ...]


@dataclasses.dataclass(frozen=True)
class UniPC:
    """UniPC-p in data prediction with B(h) = e^h - 1 (Zhao et al. 2023, arXiv:2302.04867).

    The estimate at a point first corrects x there (UniC-p), then predicts the next one (UniP-p).
    The order of the error is p + 1. The first steps, which have too few estimates, and the last
    ones before clean data are of lower order. Raises ValueError for an order below 1.
    """

    order: int = 2

    def __post_init__(self):
        if self.order < 1:
            raise ValueError(f"an order is at least 1, not {self.order}")

    @property
    def draws(self) -> bool:
        """No."""
        return False

    def plan(self, grid: Grid) -> Correction:
        """Computes the coefficients of all steps."""
        n, width = grid.steps, self.order + 1
        c = Correction(
            np.ones(n), np.zeros(n), np.zeros((n, width)), np.zeros(n), np.zeros((n, width))
        )
        to_clean = grid.level.sigma[-1] == 0
        orders = [min(self.order, i + 1, n - i if to_clean else n) for i in range(n)]
        for i, p in enumerate(orders):
            c.x[i], estimates = _step(grid, i, p, corrects=False)
            c.predict[i, :p] = estimates[1:]
            if i:
                p = orders[i - 1]
                c.keep[i] = 0
                c.last[i], c.correct[i, : p + 1] = _step(grid, i - 1, p, corrects=True)
        return c

    def start(self, x: Float[Array, "b ..."]) -> Memory:
        """Remembers zeros, which the first steps multiply by zero."""
        nothing = jnp.zeros_like(x)
        return Memory(nothing, (nothing,) * self.order)

    def step(
        self, denoise: Denoiser, state: State, move: Move, keys: Key | None
    ) -> tuple[State, Float[Array, "b ..."]]:
        """Corrects, and predicts."""
        del keys
        c: Correction = move.plan
        newest = estimate(denoise, state.x, move.time)
        estimates = (newest, *state.memory.estimates)
        corrected = c.keep * state.x + c.last * state.memory.last + weighted(c.correct, estimates)
        x = c.x * corrected + weighted(c.predict, estimates)
        return State(x, Memory(corrected, estimates[:-1])), newest


def _step(grid: Grid, i: int, order: int, *, corrects: bool) -> tuple[float, np.ndarray]:
    """Computes step i's coefficients of x and of the estimates at points i + 1, i, i - 1, ...

        x_t = (sigma_t / sigma_s) x_s + A m_0 + A sum over k of rho_k (m_k - m_0) / r_k

    with A = alpha_t (1 - e^-h), r_k = (lambda_k - lambda_s) / h. A predictor has k = 1 to p - 1,
    the points before; a corrector also the one that the step leads to, for which r is 1.
    """
    signal = log_signal(grid)
    h = signal[i + 1] - signal[i]
    others = [i - k for k in range(1, order)]
    r = np.array([(signal[k] - signal[i]) / h for k in others])
    if corrects:
        rho = np.array([0.5]) if order == 1 else _weights(np.append(r, 1.0), h)
        ahead, rho = rho[-1], rho[:-1]
    else:
        # One half is the authors' own simplification; it keeps the order.
        ahead, rho = 0.0, np.array([0.5]) if order == 2 else _weights(r, h)
    scale = -math.expm1(-h) * grid.level.alpha[i + 1]
    shares = rho / r
    estimates = scale * np.array([ahead, 1 - ahead - shares.sum(), *shares])
    return grid.level.sigma[i + 1] / grid.level.sigma[i], estimates


def _weights(r: np.ndarray, h: float) -> np.ndarray:
    """Solves sum over k of r_k^(j - 1) rho_k = j! phi_(j + 1)(-h) (-h) / (e^-h - 1), j = 1, 2, ...

    The condition for order p of Zhao et al. 2023, section 3, with phi_1(z) = (e^z - 1) / z and
    phi_(j + 1)(z) = (phi_j(z) - 1 / j!) / z.
    """
    if not len(r):
        return r
    phi, right = math.expm1(-h) / -h, []
    for j in range(1, len(r) + 1):
        phi = (phi - 1 / math.factorial(j)) / -h
        right.append(math.factorial(j) * phi * -h / math.expm1(-h))
    return np.linalg.solve(np.vander(r, increasing=True).T, np.array(right))
