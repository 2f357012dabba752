"""Sampling: a scan over a grid, whose step is a solver's.

A `Solver` knows how to get from one noise level to the next, and asks a denoiser for clean data.
What it needs of the grid it computes beforehand, in float64, in `plan`; its `step` is pure, so the
whole walk is one `lax.scan` whose memory does not grow with the number of steps:

>>> grid = trailing(schedule, 50)  # doctest: +SKIP
>>> keys = row_keys(key, 16)  # doctest: +SKIP
>>> images = sample(denoise, prior(keys, (48, 48, 3), grid), grid, solver=DDIM())  # doctest: +SKIP

Nothing is jitted here. To jit, pass parameters as arguments and make the denoiser inside.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdl.diffusion.denoiser import Denoiser
from jaxdl.diffusion.draws import derive_rows, normal_rows
from jaxdl.diffusion.grid import Grid
from jaxdl.diffusion.process import Level
from jaxdl.types import Key, PyTree, Step


class State(NamedTuple):
    """What sampling carries from one step to the next: x, and what the solver remembers."""

    x: Float[Array, "b ..."]
    memory: PyTree = ()


class Move(NamedTuple):
    """One step of the way. In `moves` each leaf has a leading axis of all n."""

    index: Int[Array, ""]
    time: Float[Array, ""]  # where the step begins
    time_there: Float[Array, ""]  # where it ends, not a number for clean data
    here: Level
    there: Level
    plan: PyTree  # the solver's own


class Trajectory(NamedTuple):
    """All steps of the way, n of them: x after each step, and the estimate of x_0 that made it."""

    x: Float[Array, "n b ..."]
    x0: Float[Array, "n b ..."]


class Solver(Protocol):
    """How to get from one noise level to the next."""

    @property
    def draws(self) -> bool:
        """Whether it draws noise, and so needs keys."""
        ...

    def plan(self, grid: Grid) -> Any:
        """Computes, in NumPy, what each step needs to know of the grid: leaves (n, ...)."""
        ...

    def start(self, x: Float[Array, "b ..."]) -> PyTree:
        """Returns what is remembered before the first step."""
        ...

    def step(
        self, denoise: Denoiser, state: State, move: Move, keys: Key | None
    ) -> tuple[State, Float[Array, "b ..."]]:
        """Takes one step; also returns the estimate of x_0 at its beginning."""
        ...


def prior(keys: Key, shape: tuple[int, ...], grid: Grid) -> Float[Array, "b ..."]:
    """Draws what sampling starts from: noise of the grid's first level, `shape` a row.

    That is q(x_T | x_0) without its mean, which is next to nothing at the noisiest level.
    """
    return float(grid.level.sigma[0]) * normal_rows(derive_rows(keys, "prior"), shape)


def sample(
    denoise: Denoiser,
    x: Float[Array, "b ..."],
    grid: Grid,
    *,
    solver: Solver,
    keys: Key | None = None,
) -> Float[Array, "b ..."]:
    """Takes x from the grid's first level to its last.

    Args:
      denoise: from (x, time) to x_0; see `jaxdl.diffusion.denoiser`.
      x: float32, noise from `prior` or data with noise of the first level added.
      grid: a constant of the program.
      solver: `DDPM`, `DDIM`, `Heun`, `DPMSolver2M` or `UniPC`.
      keys: one a row, as `jaxdl.decode.row_keys` makes them, for solvers that draw. What is drawn
        for a row depends on its key alone, not on its neighbours.

    Raises ValueError where keys are missing or are not one a row, and where estimates are not
    shaped like x.
    """
    step = denoising_step(denoise, solver, keys)

    def without_trace(state: State, move: Move) -> tuple[State, None]:
        return step(state, move)[0], None

    state, _ = jax.lax.scan(without_trace, State(x, solver.start(x)), moves(grid, solver, x.dtype))
    return state.x


def trajectory(
    denoise: Denoiser,
    x: Float[Array, "b ..."],
    grid: Grid,
    *,
    solver: Solver,
    keys: Key | None = None,
) -> Trajectory:
    """Samples as `sample` does, and keeps every step; the last `x` is the sample.

    Memory grows with the number of steps, as what is returned does.
    """
    step = denoising_step(denoise, solver, keys)
    return jax.lax.scan(step, State(x, solver.start(x)), moves(grid, solver, x.dtype))[1]


def denoising_step(
    denoise: Denoiser, solver: Solver, keys: Key | None = None
) -> Step[State, Move, Trajectory]:
    """Makes the pure step that `sample` scans, for loops of one's own over `moves`.

    Raises ValueError where the solver draws noise and there are no keys; the step does where they
    are not one a row.
    """
    if solver.draws and keys is None:
        raise ValueError(f"{solver} draws noise: it needs keys, one a row")

    def step(state: State, move: Move) -> tuple[State, Trajectory]:
        if keys is not None and keys.shape != (len(state.x),):
            raise ValueError(f"{len(state.x)} rows need as many keys, not shape {keys.shape}")
        here = None if keys is None else derive_rows(keys, "step", move.index)
        state, x0 = solver.step(denoise, state, move, here)
        return state, Trajectory(state.x, x0)

    return step


def moves(grid: Grid, solver: Solver, dtype: Any = jnp.float32) -> Move:
    """Lays a grid out for scanning: the steps' moves, each leaf with a leading axis n.

    Levels and the solver's numbers are rounded from float64 to `dtype`, at last.
    """
    time = jnp.asarray(grid.time)
    here, there, plan = jax.tree.map(
        lambda numbers: jnp.asarray(numbers, dtype), (grid.here, grid.there, solver.plan(grid))
    )
    return Move(jnp.arange(grid.steps), time[:-1], time[1:], here, there, plan)
