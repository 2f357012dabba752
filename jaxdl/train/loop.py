"""The one loop. Compilation, donation, placement and the flow of batches live here only."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxdl.data.pipeline import Pipeline
from jaxdl.metrics import Metrics, merge, to_host
from jaxdl.train.program import Compiled, compile_ahead, spread
from jaxdl.train.sharding import Placement
from jaxdl.train.state import TrainState
from jaxdl.types import Batch, PyTree, Step


class Interval(NamedTuple):
    """What `fit` yields: the run between two stops."""

    step: int  # steps taken so far
    state: TrainState  # lent until the next interval is asked for, then donated
    # Of each call since the last stop, the step that it began at and its metrics, which are still
    # on the device: reading them waits for it.
    metrics: list[tuple[int, Metrics]]


@dataclasses.dataclass(frozen=True)
class Feed:
    """A pipeline bound to a placement: its resident arrays, and its batches, on the devices."""

    data: Pipeline
    placement: Placement

    @functools.cached_property
    def arrays(self) -> PyTree:
        """What lives on every device for the whole run."""
        return self.placement.replicate(dict(self.data.arrays))

    def put(
        self, batches: Sequence[Mapping[str, np.ndarray]], *, stacked: bool
    ) -> Mapping[str, ArrayLike]:
        """Puts one batch, or several stacked along a new first axis, onto the devices."""
        return self.placement.split(_stack(batches) if stacked else batches[0], stacked=stacked)

    def compile(
        self, function: Callable, state: TrainState, *, steps: int = 1, donate: bool = False
    ) -> Compiled:
        """Compiles `function(state, batch)` over this feed, ahead of its first call.

        With `steps` above 1 it becomes a scan over that many stacked batches. With `donate` the
        memory of the state is given to the first of what it returns, the next state. Where the
        state is abstract all else is too, and nothing is put onto a device.
        """

        def call(state, arrays, batch):
            if steps == 1:
                return function(state, self.data.assemble(arrays, batch))
            return jax.lax.scan(
                lambda s, b: function(s, self.data.assemble(arrays, b)), state, batch
            )

        placement, stacked = self.placement, steps > 1
        batches = [self.data.batch(0)] * steps
        if isinstance(state.step, jax.ShapeDtypeStruct):
            batch = _stack(batches) if stacked else batches[0]
            arrays = placement.abstract_replicate(dict(self.data.arrays))
            example = arrays, placement.abstract_split(batch, stacked=stacked)
        else:
            example = self.arrays, self.put(batches, stacked=stacked)
        out = (placement.shardings(state), placement.replicated) if donate else None
        program = spread(call, placement, stacked=stacked, donate=donate, out=out)
        return compile_ahead(program, state, *example)


def _stack(batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def fit(
    step: Step[TrainState, Batch, Metrics],
    state: TrainState,
    data: Pipeline,
    *,
    until: int,
    every: Sequence[int],
    chunk: int = 1,
    placement: Placement | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_compile: Callable[[Compiled], None] = lambda compiled: None,
) -> Iterator[Interval]:
    """Trains from `state.step` to `until`, yielding an `Interval` at every stop.

    >>> for step, state, metrics in fit(train_step, state, data, until=1000, every=[100]):
    ...     print(step, metrics[-1][1]["loss"].compute())  # doctest: +SKIP

    Args:
      step: a pure train step, made for `placement.axis_name`; it is compiled here, once, with its
        state donated.
      state: where to start. It is donated too: do not use it afterwards.
      data: batch number n is asked for at step n, so a resumed run sees what it would have seen.
      until: the number of steps after which to end.
      every: stop at the multiples of any of these.
      chunk: steps in one XLA program. Above 1 it pays on accelerators; on CPU the gradients of
        convolutions inside a loop are slow. Chunks start at stops, and what is left before the
        next stop runs step by step, so a resumed run keeps its chunking, bit for bit.
      placement: the devices; all of them, the batch split evenly, if not given.
      stop: asked after each call; when true, the loop yields once more and ends.
      on_compile: told of each program once it is compiled, before it runs.

    The host runs at most two calls ahead of the device, and never waits for the newest.
    """
    placement = placement or Placement.over()
    feed = Feed(data, placement)
    state = placement.put(state)
    programs: dict[int, Compiled] = {}
    at = int(state.step)
    feeding = data.batches(at)
    metrics: list[tuple[int, Metrics]] = []
    try:
        while at < until:
            edge = min(until, *(at // n * n + n for n in every))
            count = chunk if at + chunk <= edge else 1
            if count not in programs:
                programs[count] = feed.compile(step, state, steps=count, donate=True)
                on_compile(programs[count])
            batch = feed.put(list(itertools.islice(feeding, count)), stacked=count > 1)
            state, new = programs[count].call(state, feed.arrays, batch)
            metrics.append((at, new))
            at += count
            if len(metrics) > 2:
                jax.block_until_ready(metrics[-3])
            stopping = stop()
            if at == edge or stopping:
                yield Interval(at, state, metrics)
                metrics = []
                if stopping:
                    return
    finally:
        getattr(feeding, "close", lambda: None)()


def over_batches(
    function: Callable[[TrainState, Batch], PyTree],
    data: Pipeline,
    *,
    placement: Placement | None = None,
    summed: bool = False,
) -> Callable[[TrainState], Iterator[PyTree]]:
    """Makes `run(state)`, which yields `function(state, batch)` for each batch of one pass.

    The program is compiled at the first run and kept; the last batch is padded, with a mask. The
    function sees whole batches, unless what it returns is `summed` over `placement.axis_name`.
    """
    placement = placement or Placement.over()
    feed = Feed(data, placement if summed else dataclasses.replace(placement, parallel="jit"))
    compiled: list[Compiled] = []

    def run(state: TrainState) -> Iterator[PyTree]:
        if not compiled:
            compiled.append(feed.compile(function, state))
        for batch in itertools.islice(data.batches(), len(data)):
            yield compiled[0].call(state, feed.arrays, feed.put([batch], stacked=False))

    return run


def evaluator(
    eval_step: Callable[[TrainState, Batch], Metrics],
    data: Pipeline,
    *,
    placement: Placement | None = None,
) -> Callable[..., dict[str, float] | None]:
    """Makes `evaluate(state, stop=...)`: one pass over `data`, every example counted exactly once.

    `eval_step` is made for `placement.axis_name`. It returns the means; None where `stop()` turned
    true before the end.
    """
    run = over_batches(eval_step, data, placement=placement, summed=True)

    def evaluate(
        state: TrainState, *, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        totals: Metrics | None = None
        for metrics in run(state):
            totals = merge(totals, to_host(metrics))
            if stop():
                return None
        return {name: mean.compute() for name, mean in (totals or {}).items()}

    return evaluate
