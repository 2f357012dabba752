"""One pure step, three ways over the devices: jit over the mesh, pmap, or shard_map."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxdl.train.collectives import Traffic, count_collectives
from jaxdl.train.sharding import Placement


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compiled program, and what XLA says of it."""

    call: Any
    seconds: float

    @property
    def flops(self) -> float | None:
        """Floating-point operations a call, by XLA's count; None where XLA gives none."""
        cost = self.call.cost_analysis() or {}
        return cost.get("flops") or None

    @property
    def bytes(self) -> int | None:
        """Peak bytes a device: arguments, results that do not reuse them, and temporaries."""
        memory = self.call.memory_analysis()
        if memory is None:
            return None
        sizes = memory.argument_size_in_bytes + memory.output_size_in_bytes
        return sizes + memory.temp_size_in_bytes - memory.alias_size_in_bytes

    @property
    def donated_bytes(self) -> int | None:
        """Bytes a device of the arguments that results take the place of: the state, in a step."""
        memory = self.call.memory_analysis()
        return None if memory is None else memory.alias_size_in_bytes

    @property
    def collectives(self) -> Mapping[str, Traffic]:
        """What a call communicates, by kind of collective."""
        return count_collectives(self.call.as_text())


def spread(
    function: Callable, placement: Placement, *, state: Any, out: Any, stacked: bool, donate: bool
) -> Any:
    """Makes `function(state, arrays, batch)` a jitted one over the placement's devices.

    Args:
      function: under pmap and shard_map it sees its device's rows alone, and has to have summed
        what it returns over `placement.axis_name`, so that it is equal on all devices.
      placement: where the arguments lie, and the way.
      state: the shardings of the state.
      out: the shardings of what the function returns.
      stacked: whether the batches have an axis of steps before axis b.
      donate: whether the state's memory is given to the result.
    """
    donated = (0,) if donate else ()
    rows = placement.batch(stacked=stacked).spec
    if placement.parallel == "pmap":
        devices = list(placement.mesh.devices.ravel())
        axes: dict[str, Any] = {"in_axes": (None, None, int(stacked)), "out_axes": None}
        return jax.pmap(
            function, placement.axis_name, devices=devices, donate_argnums=donated, **axes
        )
    if placement.parallel == "shard_map":
        into, back = jax.tree.map(lambda sharding: sharding.spec, (state, out))
        specs = {"in_specs": (into, PartitionSpec(), rows), "out_specs": back}
        function = jax.shard_map(function, mesh=placement.mesh, **specs)
    return jax.jit(function, out_shardings=out, donate_argnums=donated)


def compile_ahead(function: Any, *arguments: Any) -> Compiled:
    """Compiles a jitted function for these arguments, which may be abstract; nothing is run."""
    started = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    return Compiled(compiled, time.perf_counter() - started)
