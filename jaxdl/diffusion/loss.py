"""The loss of a denoising network, one number an element: reducing is `jaxdl.metrics.Mean`'s.

A weighting is a function of the signal-to-noise ratio, and says how much the squared error of *x_0*
counts, whatever the network predicts. Others than `MinSNR` are one line:

    uniform in epsilon    lambda snr: snr
    uniform in v          lambda snr: snr + 1
    EDM's                 lambda snr: snr + 1 / sigma_data**2
    P2, with k and gamma  lambda snr: snr / (k + snr) ** gamma      (Choi et al. 2022, 2204.00227)

None is the plain error of what the network predicts: with `Epsilon` Ho et al.'s "simple" loss, with
`Preconditioned` that of EDM.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.diffusion.denoiser import Network
from jaxdl.diffusion.draws import derive_rows, normal_rows
from jaxdl.diffusion.prediction import Prediction
from jaxdl.diffusion.process import diffuse, like
from jaxdl.diffusion.schedule import Schedule
from jaxdl.losses import squared_error
from jaxdl.types import Key

Weighting = Callable[[Float[Array, " b"]], Float[Array, " b"]]


@dataclasses.dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma), so that easy levels do not rule (Hang et al. 2023, arXiv:2303.09556)."""

    gamma: float = 5.0

    def __post_init__(self):
        if not self.gamma > 0:
            raise ValueError(f"gamma is above 0, not {self.gamma}")

    def __call__(self, snr: Float[Array, " b"]) -> Float[Array, " b"]:
        """Computes min(SNR, gamma)."""
        return jnp.minimum(snr, self.gamma)


def denoising_loss(
    network: Network,
    x0: Float[Array, "b ..."],
    keys: Key,
    *,
    schedule: Schedule,
    prediction: Prediction,
    weighting: Weighting | None = None,
) -> Float[Array, "b ..."]:
    """Computes the loss at a time and noise drawn for each row by its own key.

    Ho et al. 2020, algorithm 1, arXiv:2006.11239. Times are `schedule.draw`'s. See `loss_at`.
    """
    time = schedule.draw(derive_rows(keys, "time"))
    noise = normal_rows(derive_rows(keys, "noise"), x0.shape[1:], dtype=x0.dtype)
    return loss_at(
        network,
        x0,
        time=time,
        noise=noise,
        schedule=schedule,
        prediction=prediction,
        weighting=weighting,
    )


def loss_at(
    network: Network,
    x0: Float[Array, "b ..."],
    *,
    time: Float[Array, " b"],
    noise: Float[Array, "b ..."],
    schedule: Schedule,
    prediction: Prediction,
    weighting: Weighting | None = None,
) -> Float[Array, "b ..."]:
    """Computes (output - target)^2, weighted, for each element; nothing is averaged.

    Args:
      network: outputs `prediction` for (x, time).
      x0: clean data, of about unit scale, such as images in [-1, 1].
      time: diffusion time, one a row.
      noise: standard normal.
      schedule: what time means.
      prediction: what the network's output means.
      weighting: of the signal-to-noise ratio; None for the plain error. See above.

    Raises ValueError where the network's output or the noise is not shaped like x0.
    """
    level = schedule.level(time)
    output = network(diffuse(x0, noise, level), time)
    error = squared_error(output, prediction.target(x0, noise, level))
    if weighting is None:
        return error
    # An error of the output is `gain` times as large an error of x_0.
    weight = prediction.gain(level) ** 2 * weighting(level.snr)
    return like(weight, error) * error
