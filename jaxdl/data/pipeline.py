"""Pipelines: batch number n depends only on (seed, n), so a run resumes by starting at n.

Two ways to the device under one contract. `Resident` keeps the whole set on the device and sends
the numbers of a batch's examples; `Streaming` sends the examples. Both draw them by the same
function of (seed, n), so they give the same batches, bit for bit.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Mapping
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from jaxdl.data.order import Order, this_process
from jaxdl.data.sources import RESIDENT_LIMIT, ArraySource, Source, load_into_memory
from jaxdl.types import Array, Batch

HostBatch = Mapping[str, np.ndarray]


@runtime_checkable
class Pipeline(Protocol):
    """Batches by number; what the compiled step sees is `assemble(arrays, batch(n))`."""

    @property
    def batch_size(self) -> int:
        """Examples in a global batch, over all processes."""
        ...

    @property
    def examples(self) -> int:
        """Examples in one pass, over all processes."""
        ...

    @property
    def seed(self) -> int | None:
        """What the order is drawn from in training, which has no end; None in evaluation."""
        ...

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """What lives on the device for the whole run; {} where the data streams."""
        ...

    def batch(self, step: int) -> HostBatch:
        """Returns what travels to the device for step `step`: this process's part of the batch."""
        ...

    def batches(self, start: int = 0) -> Generator[HostBatch, None, None]:
        """Yields batch(start), batch(start + 1), ...: without end in training, else one pass.

        Close the generator (`contextlib.closing`) to stop what runs ahead of it.
        """
        ...

    def assemble(self, arrays: Mapping[str, Array], batch: Mapping[str, Array]) -> Batch:
        """Returns the examples of a batch with leading axis b, within the compiled step; pure.

        In evaluation there is a "mask", bool, of the shape of the unreduced loss, (b) or (b, t):
        false where something only fills the batch, or is counted elsewhere.
        """
        ...

    def __len__(self) -> int:
        """Returns the number of batches in one pass, counting a last one that is not full."""
        ...


class Resident:
    """A set that lives on the device: a batch is the numbers of its examples, {"index": int32}.

    One example costs four bytes to send, and indexing is part of the compiled step.
    """

    def __init__(
        self,
        source: ArraySource | Mapping[str, np.ndarray],
        batch_size: int,
        *,
        seed: int | None,
        shard: tuple[int, int] | None = None,
    ):
        source = source if isinstance(source, ArraySource) else ArraySource(source)
        self.arrays = source.arrays
        self.order = Order(
            examples=len(source), batch_size=batch_size, seed=seed, shard=shard or this_process()
        )

    @property
    def batch_size(self) -> int:
        """Examples in a global batch, over all processes."""
        return self.order.batch_size

    @property
    def examples(self) -> int:
        """Examples in one pass, over all processes."""
        return self.order.examples

    @property
    def seed(self) -> int | None:
        """What the order is drawn from; None in evaluation, one pass in order."""
        return self.order.seed

    def __len__(self) -> int:
        return len(self.order)

    def batch(self, step: int) -> HostBatch:
        """Returns {"index": int32 (b)} for step `step`, and in evaluation "mask", bool (b)."""
        index, mask = self.order.indices(step)
        return {"index": index} if mask is None else {"index": index, "mask": mask}

    def batches(self, start: int = 0) -> Generator[HostBatch, None, None]:
        """Yields the batches from `start` on; there is nothing to prefetch."""
        stop = sys.maxsize if self.seed is not None else len(self)
        for step in range(start, stop):
            yield self.batch(step)

    def assemble(self, arrays: Mapping[str, Array], batch: Mapping[str, Array]) -> Batch:
        """Takes the batch's examples out of the arrays; pure, for the compiled step."""
        examples = {
            # The numbers are in range by construction: no need to fill in what is not there.
            name: jnp.take(array, batch["index"], axis=0, mode="clip")
            for name, array in arrays.items()
        }
        return examples | ({"mask": batch["mask"]} if "mask" in batch else {})


class Streaming:
    """A set that does not fit: examples are read, decoded and sent batch by batch, through Grain.

    `workers=0` reads ahead in `prefetch` threads, which is enough where reading waits for the disk
    or for a decoder that releases the interpreter lock; `workers > 0` starts so many processes,
    each with its own `prefetch` batches of buffer. The batches are the same whichever it is.
    """

    arrays: Mapping[str, np.ndarray] = {}  # nothing lives on the device

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        seed: int | None,
        workers: int = 0,
        prefetch: int = 4,
        shard: tuple[int, int] | None = None,
    ):
        self.source = source
        self.order = Order(
            examples=len(source), batch_size=batch_size, seed=seed, shard=shard or this_process()
        )
        self.workers = workers
        self.prefetch = prefetch

    @property
    def batch_size(self) -> int:
        """Examples in a global batch, over all processes."""
        return self.order.batch_size

    @property
    def examples(self) -> int:
        """Examples in one pass, over all processes."""
        return self.order.examples

    @property
    def seed(self) -> int | None:
        """What the order is drawn from; None in evaluation, one pass in order."""
        return self.order.seed

    def __len__(self) -> int:
        return len(self.order)

    def batch(self, step: int) -> HostBatch:
        """Reads the examples of step `step`, stacked; in evaluation with "mask", bool (b)."""
        index, mask = self.order.indices(step)
        examples = [self.source[int(i)] for i in index]
        stacked = {name: np.stack([e[name] for e in examples]) for name in examples[0]}
        return stacked if mask is None else stacked | {"mask": mask}

    def batches(self, start: int = 0) -> Generator[HostBatch, None, None]:
        """Yields the batches from `start` on, read ahead; nothing before `start` is read."""
        import grain
        from absl import flags

        dataset = grain.MapDataset.source(_Batches(self))[start:]
        options = grain.ReadOptions(num_threads=self.prefetch, prefetch_buffer_size=self.prefetch)
        dataset = dataset.to_iter_dataset(options)
        if self.workers:
            # Grain reads absl flags, which only an absl program has parsed. This says that they
            # have their defaults; it does not look at sys.argv.
            flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self.workers, per_worker_buffer_size=self.prefetch
                ),
                worker_init_fn=_live_and_die_with_parent,
            )
        iterator = iter(dataset)
        try:
            yield from iterator
        finally:
            iterator.close()

    def assemble(self, arrays: Mapping[str, Array], batch: Mapping[str, Array]) -> Batch:
        """Returns the batch, which is whole already."""
        del arrays
        return dict(batch)


class _Batches:
    """The batches as Grain's random-access source, so that Grain runs ahead over whole batches."""

    def __init__(self, pipeline: Streaming):
        self.pipeline = pipeline

    def __len__(self) -> int:
        return len(self.pipeline) if self.pipeline.seed is None else sys.maxsize

    def __getitem__(self, index: int) -> HostBatch:
        return self.pipeline.batch(index)


def _live_and_die_with_parent(worker: int, workers: int) -> None:
    """Lets a worker outlive Ctrl-C, which is the parent's to answer, but not the parent itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)  # Grain's workers would wait for a killed parent for ever

    threading.Thread(target=watch, daemon=True).start()


def make_pipeline(
    source: Source,
    batch_size: int,
    *,
    seed: int | None,
    resident: bool | None = None,
    workers: int = 0,
    shard: tuple[int, int] | None = None,
) -> Resident | Streaming:
    """Chooses the way: Resident where the decoded set has at most RESIDENT_LIMIT bytes (2 GiB).

    `resident` overrides the choice. A lazy source that is to be resident is decoded here, once.
    `shard` is the share of a process, see `Order`: by default this one's, of all that there are.
    """
    if resident is None:
        resident = decoded_bytes(source) <= RESIDENT_LIMIT
    if resident:
        return Resident(load_into_memory(source), batch_size, seed=seed, shard=shard)
    return Streaming(source, batch_size, seed=seed, workers=workers, shard=shard)


def decoded_bytes(source: Source) -> int:
    """Returns the size of all examples in memory, in bytes, taking the first for all of them."""
    if not len(source):
        return 0
    return len(source) * sum(np.asarray(value).nbytes for value in source[0].values())
