"""Metrics are monoids: a total and a count that travel apart until a person reads them.

Means of means are how test sets get scored wrongly, so nothing here divides before the end. Any
split of the data into batches, devices or processes gives the same number.
"""

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num


@flax.struct.dataclass
class Mean:
    """A weighted mean that has not been divided yet; `a + b` merges two of them."""

    total: Array | np.ndarray | float
    count: Array | np.ndarray | float

    @classmethod
    def of(
        cls,
        values: Num[Array, "..."] | Bool[Array, "..."],
        mask: Num[Array, "..."] | Bool[Array, "..."] | None = None,
    ):
        """Sums `values`, each weighted by `mask` (1 or True counts, 0 or False does not, x is x).

        Raises ValueError where the mask is not shaped like the values: broadcasting would count
        examples twice or not at all, in silence.
        """
        values = values.astype(jnp.float32)
        if mask is None:
            return cls(values.sum(), jnp.float32(values.size))
        if mask.shape != values.shape:
            raise ValueError(f"the mask has shape {mask.shape}, the values have {values.shape}")
        mask = mask.astype(jnp.float32)
        # A masked value may be anything, also NaN: select, do not multiply.
        return cls(jnp.where(mask != 0, values * mask, 0).sum(), mask.sum())

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def compute(self) -> float:
        """Divides, at last; NaN where nothing was counted."""
        return float(self.total) / float(self.count) if float(self.count) else float("nan")


Metrics = Mapping[str, Mean]


def merge(a: Metrics | None, b: Metrics) -> Metrics:
    """Merges two sets of metrics, name by name; None is the neutral element.

    Raises ValueError where the names differ: a metric left out would count some examples only.
    """
    if a is not None and a.keys() != b.keys():
        raise ValueError(f"cannot merge metrics {sorted(a)} with {sorted(b)}")
    return b if a is None else {name: a[name] + b[name] for name in b}


def to_host(metrics: Metrics) -> dict[str, Mean]:
    """Fetches metrics and sums any leading axis of steps in float64, one step after the other."""
    fetched = jax.device_get(dict(metrics))
    return {
        name: Mean(*(float(np.sum(np.asarray(x, np.float64))) for x in (mean.total, mean.count)))
        for name, mean in fetched.items()
    }


def correct(logits: Float[Array, "*b v"], labels: Int[Array, "*b"]) -> Bool[Array, "*b"]:
    """Tells for each example whether its largest logit is its label's (the first one on a tie)."""
    return logits.argmax(-1) == labels


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts, in row i and column j, the examples of class i that were taken for class j.

    Raises ValueError where the shapes differ or a class lies outside [0, classes).
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape:
        raise ValueError(f"{labels.shape} labels, but {predictions.shape} predictions")
    for name, given in (("labels", labels), ("predictions", predictions)):
        if given.size and not 0 <= given.min() <= given.max() < classes:
            raise ValueError(f"{name} must lie in [0, {classes}): {given.min()} to {given.max()}")
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix
