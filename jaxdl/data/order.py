"""The order of examples: which ones are in batch n, as a function of (seed, n) alone."""

import dataclasses
import functools

import jax
import numpy as np
from jaxtyping import Bool, Int

from jaxdl.errors import UserError


def this_process() -> tuple[int, int]:
    """Returns the number of this process and how many there are, as JAX knows them."""
    return jax.process_index(), jax.process_count()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """Which examples are in which batch: a function of (seed, step) and of nothing else.

    Training (a seed): batch n holds positions n B to (n + 1) B of the endless chain of one
    permutation an epoch, so every epoch has every example exactly once and no batch is short,
    whether or not B divides the number of examples. Evaluation (`seed=None`): one pass in order;
    the last batch is filled up with example 0, masked.

    `shard=(i, n)` is process i of n: it sees the i-th of n equal slices of every global batch; by
    default it is this process of those that JAX knows of.
    Raises UserError for an empty set and for a batch that the processes cannot share equally.
    """

    examples: int
    batch_size: int
    seed: int | None
    shard: tuple[int, int] = dataclasses.field(default_factory=this_process)

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"--batch-size must be at least 1, not {self.batch_size}")
        if self.examples < 1:
            raise UserError("the dataset has no examples; look at the folder or the split it is of")
        index, count = self.shard
        if not 0 <= index < count:
            raise ValueError(f"shard {index} of {count} does not exist")
        if self.batch_size % count:
            raise UserError(
                f"a batch of {self.batch_size} cannot be shared by {count} processes; "
                f"choose a --batch-size that is a multiple of {count}"
            )

    def __len__(self) -> int:
        return -(-self.examples // self.batch_size)

    def indices(self, step: int) -> tuple[Int[np.ndarray, " b"], Bool[np.ndarray, " b"] | None]:
        """Returns this process's example numbers in batch `step`, int32, and the mask if any."""
        if step < 0 or (self.seed is None and step >= len(self)):
            raise IndexError(f"there is no batch {step}: one pass has {len(self)}")
        positions = self.positions(step)
        if self.seed is None:
            mask = positions < self.examples
            return np.where(mask, positions, 0).astype(np.int32), mask
        epochs, offsets = np.divmod(positions, self.examples)
        index = np.empty(len(positions), np.int32)
        for epoch in range(epochs[0], epochs[-1] + 1):
            here = epochs == epoch
            index[here] = permutation(self.examples, seed=self.seed, epoch=epoch)[offsets[here]]
        return index, None

    def positions(self, step: int) -> Int[np.ndarray, " b"]:
        """Returns where this process's part of batch `step` lies in the chain of all epochs."""
        shard, shards = self.shard
        local = self.batch_size // shards
        return step * self.batch_size + shard * local + np.arange(local)


@functools.lru_cache(maxsize=4)  # the last two epochs, of a training and of another set
def permutation(n: int, *, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    """Returns the order of n examples in an epoch, int32: the ranks of n draws of Philox.

    NumPy promises the raw bits of its generators for ever, but not what `permutation` makes of
    them; sorting raw bits makes the same order with every version. Philox (Salmon et al. 2011,
    Parallel random numbers: as easy as 1, 2, 3) is counter-based: the key is (seed, epoch).
    """
    key = np.array([seed % 2**64, epoch], np.uint64)
    order = np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable").astype(np.int32)
    order.setflags(write=False)
    return order
