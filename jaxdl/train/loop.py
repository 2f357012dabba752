"""The one loop. Compilation, donation, placement and the flow of batches live here only."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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
        self,
        function: Callable,
        state: TrainState,
        *,
        out: Any,
        steps: int = 1,
        donate: bool = False,
    ) -> Compiled:
        """Compiles `function(state, batch)` over this feed, ahead of its first call.

        What it returns is placed by the shardings `out`. With `steps` above 1 it becomes a scan
        over that many stacked batches. With `donate` the memory of the state is given to the first
        of what it returns, the next state. Where the state is abstract all else is too, and
        nothing is put onto a device.
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
        options = {"state": placement.shardings(state), "out": out}
        program = spread(call, placement, **options, stacked=stacked, donate=donate)
        return compile_ahead(program, state, *example)

    def compile_step(self, step: Step, state: TrainState, *, steps: int = 1) -> Compiled:
        """Compiles a train step, or a scan over so many, with its state donated."""
        out = self.placement.shardings(state), self.placement.replicated
        return self.compile(step, state, out=out, steps=steps, donate=True)


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

    Raises ValueError where `chunk` or one of `every` is below 1, and where `data` is of evaluation
    and its one pass ends before `until`.
    """
    if chunk < 1 or min(every, default=1) < 1:
        raise ValueError(f"chunk and every are steps, at least 1; got {chunk} and {list(every)}")
    if data.seed is None and until > len(data):
        raise ValueError(f"data has no seed, and ends after {len(data)} batches: until={until}")
    placement = placement or Placement.over()
    feed = Feed(data, placement)
    state = placement.put(state)
    programs: dict[int, Compiled] = {}
    at = int(state.step)
    feeding = data.batches(at)
    metrics: list[tuple[int, Metrics]] = []
    try:
        while at < until:
            edge = min([until, *(at // n * n + n for n in every)])
            count = chunk if at + chunk <= edge else 1
            if count not in programs:
                programs[count] = feed.compile_step(step, state, steps=count)
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
) -> Callable[[TrainState], Iterator[PyTree]]:
    """Makes `run(state)`, which yields `function(state, batch)` for each batch of one pass.

    The program is compiled at the first run and kept; the function sees whole batches, the last of
    them padded, with a mask. Raises ValueError for `data` of training.
    """
    _require_end(data)
    feed = Feed(data, dataclasses.replace(placement or Placement.over(), parallel="jit"))
    compiled: list[Compiled] = []

    def run(state: TrainState) -> Iterator[PyTree]:
        if not compiled:
            compiled.append(feed.compile(function, state, out=feed.placement.replicated))
        for batch in data.batches():
            yield compiled[0].call(state, feed.arrays, feed.put([batch], stacked=False))

    return run


def evaluator(
    eval_step: Callable[[TrainState, Batch], tuple[PyTree, Metrics]],
    data: Pipeline,
    *,
    placement: Placement | None = None,
    carry: Callable[[], PyTree] | None = None,
) -> Callable[..., dict[str, float] | None]:
    """Makes `evaluate(state, stop=...)`: one pass over `data`, every example counted exactly once.

    `eval_step` is made for `placement.axis_name`. It returns the means; None where `stop()` turned
    true before the end. For streams `carry` makes what the rows of the first batch begin with.
    Raises ValueError for `data` of training, whose passes have no end.
    """
    _require_end(data)
    feed = Feed(data, placement or Placement.over())
    place = feed.placement
    compiled: list[Compiled] = []
    begin = None if carry is None else jax.jit(carry, out_shardings=place.batch())

    def evaluate(
        state: TrainState, *, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        state = dataclasses.replace(state, carry=None if begin is None else begin())
        if not compiled:
            out = place.shardings(state).carry, place.replicated
            compiled.append(feed.compile(eval_step, state, out=out))
        totals: Metrics | None = None
        for batch in data.batches():
            rows = feed.put([batch], stacked=False)
            passed_on, metrics = compiled[0].call(state, feed.arrays, rows)
            state = dataclasses.replace(state, carry=passed_on)
            totals = merge(totals, to_host(metrics))
            if stop():
                return None
        return {name: mean.compute() for name, mean in (totals or {}).items()}

    return evaluate


def _require_end(data: Pipeline) -> None:
    """Refuses data of training, where the last batch of a pass goes on with the next epoch."""
    if data.seed is not None:
        raise ValueError(f"data has the seed {data.seed}, so it has no end; make it with seed=None")
