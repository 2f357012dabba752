"""Classifier-free guidance: one denoiser made of two.

    x_0 = unconditional + scale (conditional - unconditional)

so scale 1 is the conditional denoiser and scale 0 the unconditional one; Ho & Salimans
(arXiv:2207.12598) write 1 + w for it. Because x_0, epsilon and v at the same x differ by the same
affine map for both, guiding x_0 is guiding any of them.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdl.diffusion.denoiser import Denoiser
from jaxdl.diffusion.process import like

Scale = float | Array  # one for all rows, or one a row
EVERYWHERE = (float("-inf"), float("inf"))


def guide(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: Scale,
    *,
    interval: tuple[float, float] = EVERYWHERE,
    rescale: float = 0.0,
) -> Denoiser:
    """Guides one denoiser away from another.

    Args:
      conditional: knows the label or the prompt.
      unconditional: knows less of it, or nothing.
      scale: 1 is the conditional denoiser, 0 the unconditional one, more exaggerates.
      interval: (low, high): guide at low < time <= high, be conditional elsewhere (Kynkäänniemi
        et al. 2024, arXiv:2404.07724). Where no row is guided the unconditional half is not
        computed. In diffusion time, which for EDM is sigma, as it is in the paper.
      rescale: in [0, 1]: how far to bring each example's standard deviation back to the conditional
        one's, against overexposure (Lin et al. 2023, eqs. 15 and 16, arXiv:2305.08891). They do so
        to the network's output; here it is done to x_0, whatever the output is.

    Raises ValueError for an empty interval and for a rescale outside [0, 1].
    """
    mix = _Mix(scale, interval, rescale)

    def guided(x: Float[Array, "b ..."], time: Float[Array, " b"]) -> Float[Array, "b ..."]:
        cond = conditional(x, time)

        def mixed() -> Float[Array, "b ..."]:
            return mix(cond, unconditional(x, time), time)

        return jax.lax.cond(mix.within(time).any(), mixed, lambda: cond)

    return guided


def guide_doubled(
    denoise: Denoiser,
    scale: Scale,
    *,
    interval: tuple[float, float] = EVERYWHERE,
    rescale: float = 0.0,
) -> Denoiser:
    """Guides as `guide` does, with both halves in one call of the network, at every time.

    `denoise` takes 2b rows: first those with their conditions, then the same without. It has to
    know the conditions of all of them:

    >>> labels = jnp.concatenate([labels, jnp.full_like(labels, no_label)])  # doctest: +SKIP
    >>> guided = guide_doubled(lambda x, time: of_labels(x, time, labels), 4.0)  # doctest: +SKIP
    """
    mix = _Mix(scale, interval, rescale)

    def guided(x: Float[Array, "b ..."], time: Float[Array, " b"]) -> Float[Array, "b ..."]:
        both = denoise(jnp.concatenate([x, x]), jnp.concatenate([time, time]))
        cond, uncond = jnp.split(both, 2)
        return mix(cond, uncond, time)

    return guided


@dataclasses.dataclass(frozen=True)
class _Mix:
    """How a conditional and an unconditional estimate become one."""

    scale: Scale
    interval: tuple[float, float]
    rescale: float

    def __post_init__(self):
        low, high = self.interval
        if not low < high:
            raise ValueError(f"an interval has low < high, not {low} and {high}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale lies in [0, 1], not {self.rescale}")

    def within(self, time: Float[Array, " b"]) -> Bool[Array, " b"]:
        low, high = self.interval
        return (low < time) & (time <= high)

    def __call__(
        self, cond: Float[Array, "b ..."], uncond: Float[Array, "b ..."], time: Float[Array, " b"]
    ) -> Float[Array, "b ..."]:
        scale = like(jnp.where(self.within(time), self.scale, 1.0).astype(cond.dtype), cond)
        # Not u + s (c - u): at scale 1 this is the conditional estimate, bit for bit.
        mixed = scale * cond + (1 - scale) * uncond
        if not self.rescale:
            return mixed
        of_cond, of_mixed = (x.std(range(1, x.ndim), keepdims=True) for x in (cond, mixed))
        # An image of one value has no spread to bring back, and stays as it is.
        flat = of_mixed == 0
        factor = jnp.where(flat, 1, of_cond / jnp.where(flat, 1, of_mixed))
        return mixed * (self.rescale * factor + 1 - self.rescale)
