"""Tables of what is named otherwise on the other side: one table serves the way in and back.

A `Leaf` is a row of such a table. Names are paths joined by dots; stems end with what joins them,
so that `in_proj_` and `out_proj.` both lead to a "weight".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import flax.traverse_util
import numpy as np

from jaxdl.interop.torch import Entries
from jaxdl.types import Params


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An array of theirs, and the parameters of ours that it holds.

    Several of ours stand side by side along their last axis; where `transposed`, theirs is the
    transpose of that.
    """

    theirs: str
    ours: tuple[str, ...]
    shape: tuple[int, ...]  # of each of ours
    transposed: bool = False


def read_leaves(entries: Entries, leaves: Sequence[Leaf]) -> Params:
    """Takes their arrays and returns our parameters: fresh float32 arrays of NumPy."""
    params: dict[str, np.ndarray] = {}
    for leaf in leaves:
        *first, last = leaf.shape
        shape = (*first, len(leaf.ours) * last)
        array = entries.take(leaf.theirs, shape[::-1] if leaf.transposed else shape)
        parts = np.split(array.T if leaf.transposed else array, len(leaf.ours), axis=-1)
        params |= {name: part.copy("C") for name, part in zip(leaf.ours, parts, strict=True)}
    return flax.traverse_util.unflatten_dict(params, sep=".")


def write_leaves(entries: Entries, leaves: Sequence[Leaf]) -> dict[str, np.ndarray]:
    """Takes our parameters and returns their arrays: `read_leaves` inverted, bit for bit."""
    state: dict[str, np.ndarray] = {}
    for leaf in leaves:
        array = np.concatenate([entries.take(name, leaf.shape) for name in leaf.ours], axis=-1)
        state[leaf.theirs] = np.ascontiguousarray(array.T if leaf.transposed else array)
    return state


def dense_leaves(
    theirs: str,
    ours: Sequence[str],
    shape: tuple[int, int],
    *,
    bias: bool = True,
    transposed: bool,
) -> list[Leaf]:
    """Lists a dense layer of theirs, which is of several of ours, each of the shape [in, out]."""
    kernels, biases = (tuple(f"{name}{part}" for name in ours) for part in ("kernel", "bias"))
    weight = Leaf(f"{theirs}weight", kernels, shape, transposed)
    return [weight, Leaf(f"{theirs}bias", biases, shape[1:])] if bias else [weight]


def norm_leaves(theirs: str, ours: str, width: int, *, bias: bool = True) -> list[Leaf]:
    """Lists a layer normalisation."""
    scale = Leaf(f"{theirs}weight", (f"{ours}scale",), (width,))
    return [scale, Leaf(f"{theirs}bias", (f"{ours}bias",), (width,))] if bias else [scale]
