"""Where arrays live: one mesh, the state placed over it by rules, each batch split along it.

| axis     | what it splits                                                                     |
|----------|------------------------------------------------------------------------------------|
| `data`   | the batch; the state is whole on each                                              |
| `fsdp`   | the batch, and each large parameter with its optimiser slots and its average       |
| `tensor` | the parameters that a rule names, and the computation with them; not the batch     |
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from jaxdl.errors import UserError
from jaxdl.train.rules import LARGE, Rule, Shape, follow, fully_shard, split_parameters
from jaxdl.train.state import TrainState, leaf_name
from jaxdl.types import Array, Params, PyTree

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the axes that split a batch, together
Parallel = Literal["jit", "pmap", "shard_map"]


def make_mesh(sizes: Mapping[str, int]) -> Mesh:
    """Makes a mesh over the first devices, e.g. {"data": 4}; a size of -1 takes all the rest.

    It has all of AXES, of size 1 where not named. They are Auto: JAX makes Explicit ones by
    default since 0.9, under which every linen model with an embedding fails with ShardingTypeError.

    Raises UserError where there are too few devices, or where they do not divide; ValueError for
    an axis that is not of AXES.
    """
    for axis in sizes:
        if axis not in AXES:
            raise ValueError(f"no axis {axis!r}; there are {', '.join(AXES)}")
    devices = jax.device_count()
    known = math.prod(size for size in sizes.values() if size != -1)
    if list(sizes.values()).count(-1) > 1 or any(
        size < 1 and size != -1 for size in sizes.values()
    ):
        raise UserError(f"--mesh: sizes are positive, and at most one is -1; got {dict(sizes)}")
    if known > devices or (-1 in sizes.values() and devices % known):
        raise UserError(f"--mesh: {dict(sizes)} does not fit the {devices} device(s) here")
    shape = [devices // known if sizes.get(axis) == -1 else sizes.get(axis, 1) for axis in AXES]
    chosen = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=chosen)


def parse_mesh(text: str) -> dict[str, int]:
    """Parses `data=4,fsdp=2`; raises UserError on anything else, naming the part that is wrong."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(rf"\s*({'|'.join(AXES)})=(-?[0-9]+)\s*", part)
        if match is None or match[1] in sizes:
            raise UserError(
                f"--mesh {text}: {part!r} is not of the form AXIS=N, each of {', '.join(AXES)} at"
                " most once (N devices, -1: the rest)"
            )
        sizes[match[1]] = int(match[2])
    return sizes


def axis_name(parallel: Parallel) -> str | None:
    """Names the mapped axis that a step has to sum over; None under jit, where there is none."""
    return None if parallel == "jit" else "data"


@dataclasses.dataclass(frozen=True)
class Placement:
    """Puts the state and the batches onto a mesh, and says how a step spreads over it."""

    mesh: Mesh
    rules: tuple[Rule, ...] = ()  # of the parameters, see `jaxdl.train.rules`
    parallel: Parallel = "jit"
    large: int = LARGE  # elements from which `fsdp` splits a parameter

    @classmethod
    def over(cls, sizes: Mapping[str, int] | None = None, **options: Any) -> Placement:
        """Makes a placement over a mesh of these sizes, by default all devices along `data`."""
        return cls(make_mesh(sizes or {"data": -1}), **options)

    def __post_init__(self) -> None:
        """Refuses, with UserError, a way to spread that the mesh does not allow."""
        if self.parallel not in get_args(Parallel):
            raise ValueError(f"no way {self.parallel!r}; there are {', '.join(get_args(Parallel))}")
        if self.parallel != "jit" and self.mesh.size != self.mesh.shape["data"]:
            raise UserError(
                f"--parallel {self.parallel} splits the batch alone, over --mesh data=N: fsdp and"
                " tensor are for --parallel jit"
            )

    @property
    def axis_name(self) -> str | None:
        """The mapped axis that a step has to sum over, see `axis_name`."""
        return axis_name(self.parallel)

    @property
    def parts(self) -> int:
        """The number of parts that a batch is split into."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of what every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def batch(self, *, stacked: bool = False) -> NamedSharding:
        """The sharding of a batch, axis b split; `stacked` batches have an axis of steps before."""
        axes = BATCH if self.axis_name is None else self.axis_name
        return NamedSharding(
            self.mesh, PartitionSpec(None, axes) if stacked else PartitionSpec(axes)
        )

    def parameter_shardings(self, params: Params) -> Params:
        """Gives the sharding of each parameter, by the rules, then by FSDP.

        Raises ValueError where a rule decides nothing, and UserError where one does not divide; a
        large parameter that stays whole on a mesh that should split it is told, once.
        """
        specs = self._specs(_shapes(params))
        return jax.tree_util.tree_map_with_path(
            lambda path, _: NamedSharding(self.mesh, specs[leaf_name(path)]), params
        )

    def shardings(self, state: TrainState) -> TrainState:
        """Gives the sharding of each leaf of a state, which may be abstract.

        What belongs to a parameter (its optimiser slots, its average) is split as it is, see
        `parameter_shardings`; the carry of streams is split as the batch whose rows they are.
        """
        shapes = _shapes(state.params)
        specs = self._specs(shapes)

        def place(path: tuple, leaf: Any) -> NamedSharding:
            name, shape = leaf_name(path), tuple(leaf.shape)
            if name.startswith("carry/"):
                return self.batch()
            parameter = follow(name, shape, shapes)
            if parameter is not None:
                return NamedSharding(self.mesh, specs[parameter])
            spec = fully_shard(shape, PartitionSpec(), self.mesh.shape, large=self.large)
            return NamedSharding(self.mesh, spec)

        return jax.tree_util.tree_map_with_path(place, state)

    def _specs(self, shapes: Mapping[str, Shape]) -> dict[str, PartitionSpec]:
        sizes = self.mesh.shape
        specs = split_parameters(shapes, self.rules, sizes, large=self.large)
        large = [path for path, shape in shapes.items() if math.prod(shape) >= self.large]
        whole = [path for path in large if not any(specs[path])]
        if whole and sizes["fsdp"] * sizes["tensor"] > 1:
            _warn(f"large parameters stay whole on every device: {', '.join(whole)}")
        return specs

    def abstract(self, state: TrainState) -> TrainState:
        """Gives shapes, types and shardings of a state, which may be abstract itself."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            state,
            self.shardings(state),
        )

    def put(self, state: TrainState) -> TrainState:
        """Puts a state onto the devices, each leaf as `shardings` has it."""
        return jax.device_put(state, self.shardings(state))

    def replicate(self, tree: PyTree) -> PyTree:
        """Puts a whole copy of every leaf on every device."""

        def place(leaf: Any) -> Array:
            if isinstance(leaf, np.ndarray):  # `device_put` would send it over all processes
                shape = leaf.shape
                return jax.make_array_from_process_local_data(self.replicated, leaf, shape)
            return jax.device_put(leaf, self.replicated)

        return jax.tree.map(place, tree)

    def abstract_replicate(self, tree: PyTree) -> PyTree:
        """Gives what `replicate` would make, without making it."""

        def shaped(leaf: Any) -> jax.ShapeDtypeStruct:
            dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
            return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=self.replicated)

        return jax.tree.map(shaped, tree)

    def split(
        self, batch: Mapping[str, np.ndarray], *, stacked: bool = False
    ) -> Mapping[str, ArrayLike]:
        """Puts this process's rows of a batch onto its devices; for a lone device as it wants them.

        There a compiled call takes NumPy's arrays and puts them itself, which is faster.
        """
        sharding = self.batch(stacked=stacked)
        cut = {name: self._cut(rows, stacked) for name, rows in batch.items()}
        if self.mesh.size == jax.process_count() == 1:
            return cut
        if jax.process_count() == 1:
            return jax.device_put(cut, sharding)  # faster than what follows
        return {
            name: jax.make_array_from_process_local_data(sharding, rows)
            for name, rows in cut.items()
        }

    def abstract_split(
        self, batch: Mapping[str, np.ndarray], *, stacked: bool = False
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Gives what `split` would make of this process's rows, without making it."""
        sharding, axis = self.batch(stacked=stacked), int(stacked)

        def shaped(rows: np.ndarray) -> jax.ShapeDtypeStruct:
            shape = list(rows.shape)
            shape[axis] *= jax.process_count()
            dtype = jax.dtypes.canonicalize_dtype(rows.dtype)
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        return {name: shaped(self._cut(rows, stacked)) for name, rows in batch.items()}

    def _cut(self, rows: np.ndarray, stacked: bool) -> np.ndarray:
        """Cuts axis b into an axis of devices and one of rows where the way is pmap."""
        if self.parallel != "pmap":
            return np.asarray(rows)
        axis, devices = int(stacked), self.parts // jax.process_count()
        return rows.reshape(*rows.shape[:axis], devices, -1, *rows.shape[axis + 1 :])

    def check(self, batch_size: int, *, flag: str, accum: int = 1) -> None:
        """Raises UserError where a batch does not split evenly, naming the flag that mends it."""
        parts = self.parts * accum
        if batch_size % parts:
            up = -(-batch_size // parts) * parts
            raise UserError(
                f"{flag} {batch_size} does not split over {self.parts} device(s)"
                + (f" and {accum} microbatches" if accum > 1 else "")
                + f": use {flag} {up}, or fewer devices by --mesh"
            )


def _shapes(params: Params) -> dict[str, Shape]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {leaf_name(path): tuple(leaf.shape) for path, leaf in leaves}


@functools.cache
def _warn(message: str) -> None:
    """Warns once in a process, however often a state is placed."""
    logging.getLogger(__name__).warning(message)
