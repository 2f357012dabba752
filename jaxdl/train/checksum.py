"""A checksum that adds up: the parts of an array, wherever they lie, sum to that of the whole.

Written by eight devices and read by one, or the other way round, an array has the same number, and
no process ever needs all of it.
"""

from __future__ import annotations

import math

import jax
import numpy as np

from jaxdl.types import Array, PyTree

_WORD = 2**64


def checksums(tree: PyTree) -> list[int]:
    """Computes the checksum of each leaf: 64 bits, which any change to one element changes.

        sum_i bits_i (2 i + 1)  mod 2^64,  over the elements in row-major order

    A leaf that lies on several processes is summed over them, so all of them have to call.
    """
    leaves = jax.tree.leaves(tree)
    sums = [checksum(leaf) for leaf in leaves]
    if jax.process_count() == 1:
        return sums
    from jax.experimental.multihost_utils import process_allgather

    words = np.array([divmod(total, 2**32) for total in sums], np.uint32)  # JAX has no uint64
    gathered = np.asarray(process_allgather(words)).tolist()
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            sums[i] = sum(part[i][0] * 2**32 + part[i][1] for part in gathered) % _WORD
    return sums


def checksum(leaf: Array | np.ndarray | np.generic) -> int:
    """Computes this process's part of a leaf's checksum, of several equal copies the first."""
    if not isinstance(leaf, jax.Array):
        return _part(np.asarray(leaf), (0,) * np.ndim(leaf), np.shape(leaf))
    shards = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
    starts = [tuple(axis.start or 0 for axis in shard.index) for shard in shards]
    parts = (
        _part(np.asarray(s.data), at, leaf.shape) for s, at in zip(shards, starts, strict=True)
    )
    return sum(parts) % _WORD


def _part(values: np.ndarray, start: tuple[int, ...], whole: tuple[int, ...]) -> int:
    """Sums over a block that begins at `start` in an array of shape `whole`.

    As i is linear in the place along each axis, sums over all other axes are all that is needed.
    """
    bits = values.view(np.dtype(f"u{values.dtype.itemsize}"))
    total = int(bits.sum(dtype=np.uint64))
    for axis, length in enumerate(values.shape):
        others = tuple(other for other in range(values.ndim) if other != axis)
        places = np.arange(start[axis], start[axis] + length, dtype=np.uint64)
        along = int((places * bits.sum(axis=others, dtype=np.uint64)).sum(dtype=np.uint64))
        total += 2 * math.prod(whole[axis + 1 :]) * along
    return total % _WORD
