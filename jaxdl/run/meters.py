"""Running totals of a run, which travel with its checkpoints.

Totals are added up one call after the other, in float64, so that a run that was interrupted
anywhere logs, bit for bit, what it would have logged.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from jaxdl.metrics import Mean, Metrics, merge, to_host

Totals = dict[str, Mean]


@dataclasses.dataclass
class Meters:
    """Totals since the last logged line and since the last evaluation, and the time spent."""

    interval: Totals = dataclasses.field(default_factory=dict)
    epoch: Totals = dataclasses.field(default_factory=dict)
    evaluated: int = 0  # the step of the last evaluation
    seconds: float = 0.0  # in training, over all interruptions
    stepping: float = 0.0  # of those, without compiling, evaluating and saving

    def add(self, first: int, metrics: Metrics) -> int | None:
        """Adds the metrics of the call that began at step `first`, waiting for the device.

        Returns the first step in it whose update was refused as not finite, or None.
        """
        totals = to_host(metrics)
        self.interval = dict(merge(self.interval or None, totals))
        self.epoch = dict(merge(self.epoch or None, totals))
        refused = np.atleast_1d(jax.device_get(metrics["refused"].total))
        return first + int(refused.argmax()) if refused.any() else None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time of the block as training."""
        self._mark = time.perf_counter()
        try:
            yield
        finally:
            self.tick()

    def tick(self, *, stepping: bool = True) -> None:
        """Books the time since the last tick, as taking steps or as something beside them."""
        now = time.perf_counter()
        self.seconds += now - self._mark
        self.stepping += (now - self._mark) if stepping else 0.0
        self._mark = now

    def to_json(self) -> dict[str, Any]:
        """Writes the totals as plain JSON, which keeps every bit of a float."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**fields, "interval": _pack(self.interval), "epoch": _pack(self.epoch)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Meters:
        """Reads what `to_json` wrote."""
        totals = {name: _unpack(record[name]) for name in ("interval", "epoch")}
        return cls(**{**record, **totals})


def computed(totals: Totals) -> dict[str, float]:
    """Divides each total by its count."""
    return {name: mean.compute() for name, mean in totals.items()}


def _pack(totals: Totals) -> dict[str, list[float]]:
    return {name: [float(mean.total), float(mean.count)] for name, mean in totals.items()}


def _unpack(record: Mapping[str, list[float]]) -> Totals:
    return {name: Mean(*pair) for name, pair in record.items()}
