"""Where arrays live: one mesh, the state replicated over it, each batch split along `data`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdl.errors import UserError
from jaxdl.types import Array, PyTree


def make_mesh(sizes: Mapping[str, int]) -> Mesh:
    """Makes a mesh over the first devices, e.g. {"data": 4}; a size of -1 takes all the rest.

    Its axes are Auto: JAX makes Explicit ones by default since 0.9, under which every linen model
    with an embedding fails with ShardingTypeError.

    Raises UserError where there are too few devices, or where they do not divide.
    """
    devices = jax.device_count()
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    if list(sizes.values()).count(-1) > 1 or any(
        size < 1 and size != -1 for size in sizes.values()
    ):
        raise UserError(f"--mesh: sizes are positive, and at most one is -1; got {dict(sizes)}")
    if known > devices or (-1 in sizes.values() and devices % known):
        raise UserError(f"--mesh: {dict(sizes)} does not fit the {devices} device(s) here")
    shape = tuple(devices // known if size == -1 else size for size in sizes.values())
    chosen = np.asarray(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return Mesh(chosen, tuple(sizes), axis_types=(AxisType.Auto,) * len(shape))


def parse_mesh(text: str) -> dict[str, int]:
    """Parses `data=4`; raises UserError on anything else, naming the part that is wrong."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(data)=(-?[0-9]+)\s*", part)
        if match is None or match[1] in sizes:
            raise UserError(
                f"--mesh {text}: {part!r} is not of the form data=N (N devices, -1: all), once"
            )
        sizes[match[1]] = int(match[2])
    return sizes


@dataclasses.dataclass(frozen=True)
class Placement:
    """Puts the state and the batches onto a mesh whose axis `data` splits the batch."""

    mesh: Mesh

    @classmethod
    def over(cls, sizes: Mapping[str, int] | None = None) -> Placement:
        """Makes a placement over a mesh of these sizes, by default all devices along `data`."""
        return cls(make_mesh(sizes or {"data": -1}))

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of what every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def batch(self, *, stacked: bool = False) -> NamedSharding:
        """The sharding of a batch, axis b split; `stacked` batches have an axis of steps before."""
        return NamedSharding(
            self.mesh, PartitionSpec(None, "data") if stacked else PartitionSpec("data")
        )

    def replicate(self, tree: PyTree) -> PyTree:
        """Puts a whole copy of every leaf on every device."""
        return jax.device_put(tree, self.replicated)

    def split(self, batch: Mapping[str, np.ndarray], *, stacked: bool = False) -> dict[str, Array]:
        """Puts this process's rows of a batch onto its devices."""
        sharding = self.batch(stacked=stacked)
        return {
            name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
            for name, rows in batch.items()
        }

    def check(self, batch_size: int, *, flag: str, accum: int = 1) -> None:
        """Raises UserError where a batch does not split evenly, naming the flag that mends it."""
        devices = self.mesh.shape["data"]
        parts = devices * accum
        if batch_size % parts:
            up = -(-batch_size // parts) * parts
            raise UserError(
                f"{flag} {batch_size} does not split over {devices} device(s)"
                + (f" and {accum} microbatches" if accum > 1 else "")
                + f": use {flag} {up}, or fewer devices by --mesh data=N"
            )
