"""Denoisers: functions `(x, time) -> x_0`, a batch at a time, and what can be put around them.

A denoiser estimates clean data, always, so guidance, clipping and samplers need not ask what the
network predicts. `denoiser` makes one of a network, which knows neither schedule nor prediction
type:

>>> network = functools.partial(model.apply, {"params": params}, train=False)  # doctest: +SKIP
>>> denoise = clip(denoiser(network, Cosine(), V()))  # doctest: +SKIP

x is (b, ...), and time (b): see `jaxdl.diffusion.schedule` for what it counts.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.diffusion.prediction import Preconditioned, Prediction
from jaxdl.diffusion.process import like
from jaxdl.diffusion.schedule import Schedule

Network = Callable[[Float[Array, "b ..."], Float[Array, " b"]], Float[Array, "b ..."]]
Denoiser = Callable[[Float[Array, "b ..."], Float[Array, " b"]], Float[Array, "b ..."]]


def denoiser(network: Network, schedule: Schedule, prediction: Prediction) -> Denoiser:
    """Makes a denoiser of a network that outputs `prediction`.

    It raises ValueError where the output is not shaped like x: it would broadcast, in silence.
    """

    def denoise(x: Float[Array, "b ..."], time: Float[Array, " b"]) -> Float[Array, "b ..."]:
        output = network(x, time)
        if output.shape != x.shape:
            raise ValueError(f"the network answers with shape {output.shape} to x of {x.shape}")
        return prediction.to_x0(output, x, schedule.level(time))

    return denoise


def estimate(
    denoise: Denoiser, x: Float[Array, "b ..."], time: Float[Array, ""] | Float[Array, " b"]
) -> Float[Array, "b ..."]:
    """Asks a denoiser for x_0, at one time for all rows or one a row, in x's type.

    Raises ValueError where the answer is not shaped like x: it would broadcast, in silence.
    """
    x0 = denoise(x, jnp.broadcast_to(time, len(x)))
    if x0.shape != x.shape:
        raise ValueError(f"the denoiser answers with shape {x0.shape} to x of shape {x.shape}")
    return x0.astype(x.dtype)


def scale_inputs(network: Network, schedule: Schedule, prediction: Preconditioned) -> Network:
    """Gives a network inputs of unit variance, and ln(sigma / alpha) / 4 for the time.

    EDM's c_in and c_noise (Karras et al. 2022, table 1, arXiv:2206.00364).
    """

    def scaled(x: Float[Array, "b ..."], time: Float[Array, " b"]) -> Float[Array, "b ..."]:
        level = schedule.level(time)
        return network(x / prediction.spread(level.like(x)), jnp.log(level.ratio) / 4)

    return scaled


def clip(denoise: Denoiser, limit: float = 1.0) -> Denoiser:
    """Keeps estimates within [-limit, limit], where images are known to lie."""

    def clipped(x: Float[Array, "b ..."], time: Float[Array, " b"]) -> Float[Array, "b ..."]:
        return jnp.clip(denoise(x, time), -limit, limit)

    return clipped


def dynamic_threshold(
    denoise: Denoiser, *, quantile: float = 0.995, most: float = float("inf")
) -> Denoiser:
    """Shrinks estimates of images that leave [-1, 1], instead of saturating many pixels.

    Each example is clipped to [-s, s] and divided by s, with s the quantile of its |x_0|, but at
    least 1 and no more than `most` (Saharia et al. 2022, section 2.3, arXiv:2205.11487). Raises
    ValueError for a quantile outside (0, 1] and for `most` below 1.
    """
    if not (0 < quantile <= 1 and most >= 1):
        raise ValueError(f"quantile in (0, 1] and most >= 1, not {quantile} and {most}")

    def thresholded(x: Float[Array, "b ..."], time: Float[Array, " b"]) -> Float[Array, "b ..."]:
        x0 = denoise(x, time)
        reach = jnp.quantile(jnp.abs(x0).reshape(len(x0), -1), quantile, axis=1)
        s = like(jnp.clip(reach, 1.0, most), x0)
        return jnp.clip(x0, -s, s) / s

    return thresholded
