"""Inpainting: sampling what is not known of images of which the rest is.

Both are put around a solver, and are solvers again (Lugmayr et al. 2022, arXiv:2201.09865):

>>> solver = Resample(Inpaint(DDPM(), known, mask), times=5)  # doctest: +SKIP
>>> sample(denoise, x, grid, solver=solver, keys=keys)  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdl.diffusion.denoiser import Denoiser
from jaxdl.diffusion.draws import derive_rows, normal_rows
from jaxdl.diffusion.grid import Grid
from jaxdl.diffusion.process import diffuse, renoise
from jaxdl.diffusion.sampler import Move, Solver, State
from jaxdl.types import Key, PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Inpaint:
    """After each step, puts the known pixels back, with fresh noise of the level that was reached.

    On a grid that ends at clean data they come out as they are (algorithm 1, lines 5 and 8).

    Args:
      solver: fills in the rest; any will do.
      known: images, shaped like x; what they hold where the mask is False does not matter.
      mask: True where a pixel is known, of a shape that broadcasts to that of x with as many axes.
    """

    solver: Solver
    known: Float[Array, "b ..."]
    mask: Bool[Array, "b ..."]

    @property
    def draws(self) -> bool:
        """Yes."""
        return True

    def plan(self, grid: Grid) -> Any:
        """Returns the solver's."""
        return self.solver.plan(grid)

    def start(self, x: Float[Array, "b ..."]) -> PyTree:
        """Returns the solver's; raises ValueError for a mask of numbers and shapes unlike x's."""
        if self.mask.dtype != bool:
            raise ValueError(f"the mask is True where a pixel is known, not {self.mask.dtype}")
        if self.known.shape != x.shape:
            raise ValueError(f"the known images have shape {self.known.shape}, x has {x.shape}")
        return self.solver.start(x)

    def step(
        self, denoise: Denoiser, state: State, move: Move, keys: Key | None
    ) -> tuple[State, Float[Array, "b ..."]]:
        """Takes the solver's step and puts the known pixels back."""
        assert keys is not None
        state, x0 = self.solver.step(denoise, state, move, keys)
        noise = normal_rows(derive_rows(keys, "known"), x0.shape[1:], dtype=x0.dtype)
        known = diffuse(self.known, noise, move.there)
        return state._replace(x=jnp.where(self.mask, known, state.x)), x0


@dataclasses.dataclass(frozen=True)
class Resample:
    """Takes each step `times` times, adding its noise anew between, so that parts come to agree.

    What is filled in is made to fit what is known: a step back up mixes both (section 4.2, with
    jumps of length 1). For solvers that remember nothing, such as `DDPM`. Takes `times` evaluations
    for one.
    """

    solver: Solver
    times: int

    def __post_init__(self):
        if self.times < 1:
            raise ValueError(f"each step is taken at least once, not {self.times} times")

    @property
    def draws(self) -> bool:
        """Yes."""
        return True

    def plan(self, grid: Grid) -> Any:
        """Returns the solver's."""
        return self.solver.plan(grid)

    def start(self, x: Float[Array, "b ..."]) -> PyTree:
        """Remembers nothing; raises ValueError for a solver that would."""
        memory = self.solver.start(x)
        if jax.tree.leaves(memory):
            raise ValueError(f"{self.solver} remembers earlier steps: they cannot be taken again")
        return memory

    def step(
        self, denoise: Denoiser, state: State, move: Move, keys: Key | None
    ) -> tuple[State, Float[Array, "b ..."]]:
        """Goes down and up again, times - 1 times, and then down."""
        assert keys is not None

        def down_and_up(state: State, n: Int[Array, ""]) -> tuple[State, None]:
            again = derive_rows(keys, "again", n)
            down, _ = self.solver.step(denoise, state, move, again)
            noise = normal_rows(derive_rows(again, "up"), down.x.shape[1:], dtype=down.x.dtype)
            return down._replace(x=renoise(down.x, noise, move.there, move.here)), None

        state, _ = jax.lax.scan(down_and_up, state, jnp.arange(self.times - 1))
        return self.solver.step(denoise, state, move, keys)
