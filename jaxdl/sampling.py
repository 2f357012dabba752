"""Samplers: how the next token is drawn from its logits.

A sampler is a function `(keys [b], logits [b v]) -> tokens [b]`. `greedy` is one; a `Sample` draws
from softmax of logits that adjustments have changed, one after the other:

>>> sampler = Sample(Temperature(0.8), TopK(40), TopP(0.95))

Adjustments are pure functions of the logits. They are frozen dataclasses, not closures, so that two
that are equal share one compiled program.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdl.types import Key

Sampler = Callable[[Key, Float[Array, "b v"]], Int[Array, " b"]]
Adjustment = Callable[[Float[Array, "*b v"]], Float[Array, "*b v"]]


def greedy(keys: Key, logits: Float[Array, "b v"]) -> Int[Array, " b"]:
    """Takes the most probable token, the first one on a tie; needs no randomness."""
    del keys
    return logits.argmax(-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True, init=False)
class Sample:
    """Draws from softmax(adjusted logits), each row by its own key."""

    adjustments: tuple[Adjustment, ...]

    def __init__(self, *adjustments: Adjustment):
        object.__setattr__(self, "adjustments", adjustments)

    def __call__(self, keys: Key, logits: Float[Array, "b v"]) -> Int[Array, " b"]:
        """Draws one token a row; keys have the shape (b)."""
        for adjust in self.adjustments:
            logits = adjust(logits)
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Divides logits by `value` > 0: below 1 sharpens, above 1 flattens; towards 0 is `greedy`."""

    value: float

    def __post_init__(self):
        if not 0 < self.value < math.inf:
            raise ValueError(
                f"a temperature is above 0 and finite, not {self.value}; its limit 0 is `greedy`"
            )

    def __call__(self, logits: Float[Array, "*b v"]) -> Float[Array, "*b v"]:
        """Computes logits / value."""
        return logits / self.value


@dataclasses.dataclass(frozen=True)
class TopK:
    """Keeps the k most probable tokens, the first ones on a tie (Fan et al. 2018, 1805.04833)."""

    k: int

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"top-k keeps at least 1 token, not {self.k}")

    def __call__(self, logits: Float[Array, "*b v"]) -> Float[Array, "*b v"]:
        """Sets all other logits to -inf."""
        best = jax.lax.top_k(logits, min(self.k, logits.shape[-1]))[1]
        return _keep(logits, best, jnp.ones(best.shape, bool))


@dataclasses.dataclass(frozen=True)
class TopP:
    """Keeps the fewest most probable tokens that sum to p or more (Holtzman et al., 1904.09751).

    The most probable one is always kept; p = 1 keeps all.
    """

    p: float

    def __post_init__(self):
        if not 0 < self.p <= 1:
            raise ValueError(f"top-p takes a probability in (0, 1], not {self.p}")

    def __call__(self, logits: Float[Array, "*b v"]) -> Float[Array, "*b v"]:
        """Sets all other logits to -inf."""
        if self.p == 1:  # where rounding could cost the rarest tokens
            return logits
        order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
        sorted_probs = jnp.take_along_axis(jax.nn.softmax(logits), order, axis=-1)
        before = jnp.cumsum(sorted_probs, axis=-1) - sorted_probs
        return _keep(logits, order, before < self.p)


@dataclasses.dataclass(frozen=True)
class Forbid:
    """Never draws these tokens, such as padding, for which nothing was learnt."""

    tokens: tuple[int, ...]

    def __call__(self, logits: Float[Array, "*b v"]) -> Float[Array, "*b v"]:
        """Sets their logits to -inf."""
        return logits.at[..., jnp.array(self.tokens, jnp.int32)].set(-jnp.inf)


def _keep(
    logits: Float[Array, "*b v"], places: Int[Array, "*b k"], kept: Array
) -> Float[Array, "*b v"]:
    """Sets logits to -inf but for those at the `places` along axis v that are `kept`."""
    mask = jnp.zeros(logits.shape, bool)
    mask = jnp.put_along_axis(mask, places, kept, axis=-1, inplace=False)
    return jnp.where(mask, logits, -jnp.inf)
