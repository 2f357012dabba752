"""Grids: the noise levels that a sampler walks through, from the noisiest to the cleanest.

A grid is a constant of the program that walks it: n + 1 points in NumPy, float64, for n steps.
Those made here end at clean data. `grid[k:]` starts later, from data with noise of level k added
(Meng et al. 2021, SDEdit, arXiv:2108.01073); `grid[:-1]` ends before the last step.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from jaxdl.diffusion.process import CLEAN, Level
from jaxdl.diffusion.schedule import Discrete, Schedule


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Points to walk through: times and levels, (n + 1).

    Clean data have no time: theirs is not a number, and no solver asks for it.
    """

    time: np.ndarray
    level: Level

    def __post_init__(self):
        if self.time.ndim != 1 or len(self.time) < 2:
            raise ValueError(f"a grid has 2 points or more in a row, not {self.time.shape}")
        if not (np.diff(self.level.sigma / self.level.alpha) < 0).all():
            raise ValueError("each point of a grid has less noise than the one before")

    @property
    def steps(self) -> int:
        """The number of steps, one less than there are points."""
        return len(self.time) - 1

    @property
    def here(self) -> Level:
        """The levels where steps begin, (n)."""
        return Level(self.level.alpha[:-1], self.level.sigma[:-1])

    @property
    def there(self) -> Level:
        """The levels where steps end, (n)."""
        return Level(self.level.alpha[1:], self.level.sigma[1:])

    def __getitem__(self, points: slice) -> Grid:
        return Grid(self.time[points], Level(self.level.alpha[points], self.level.sigma[points]))


def at_times(schedule: Discrete, times: np.ndarray) -> Grid:
    """Walks the given whole times, falling within [0, T - 1], and then to clean data.

    Raises ValueError for times that do not fall, are not whole, or leave the schedule.
    """
    times = np.asarray(times, np.float64)
    inside = len(times) and 0 <= times.min() <= times.max() < schedule.steps
    if not inside or (np.diff(times) >= 0).any() or (times != np.round(times)).any():
        raise ValueError(f"times are whole and fall within [0, {schedule.steps - 1}], not {times}")
    index = times.astype(np.int64)
    return _to_clean(times, Level(schedule.table.alpha[index], schedule.table.sigma[index]))


def trailing(schedule: Discrete, steps: int) -> Grid:
    """Walks `steps` evenly spaced times, the noisiest of the schedule among them.

    The spacing that Lin et al. 2023 (table 2, arXiv:2305.08891) find right: sampling starts with as
    little signal as training ends with. Raises ValueError for no steps, or more than times.
    """
    _check(schedule, steps)
    spacing = schedule.steps / steps
    return at_times(schedule, np.round(np.arange(steps, 0, -1) * spacing) - 1)


def leading(schedule: Discrete, steps: int) -> Grid:
    """Walks `steps` evenly spaced times, 0 among them: that of Ho et al. and of DDIM.

    With fewer steps than times the noisiest is not met. Raises as `trailing` does.
    """
    _check(schedule, steps)
    return at_times(schedule, np.arange(steps)[::-1] * (schedule.steps // steps))


def karras(schedule: Schedule, steps: int, *, rho: float = 7.0) -> Grid:
    """Spaces sigma / alpha evenly in its 1 / rho-th power, from the largest to the smallest.

    Karras et al. 2022, eq. 5, arXiv:2206.00364; the last step goes from the smallest to clean data.
    On a `Discrete` schedule the times are not whole. Raises ValueError for fewer than 2 steps and
    for a rho that is not above 0.
    """
    if steps < 2 or not rho > 0:
        raise ValueError(f"at least 2 steps and rho > 0, not {steps} and {rho}")
    low, high = np.array(schedule.ratios) ** (1 / rho)
    return _to_clean(*schedule.points(np.linspace(high, low, steps) ** rho))


def _to_clean(time: Float[np.ndarray, " n"], level: Level) -> Grid:
    """Appends clean data."""
    alpha, sigma = (np.append(a, b) for a, b in zip(level, CLEAN, strict=True))
    return Grid(np.append(time, np.nan), Level(alpha, sigma))


def _check(schedule: Discrete, steps: int) -> None:
    if not 1 <= steps <= schedule.steps:
        raise ValueError(f"{steps} steps on a schedule of {schedule.steps} times")
