"""Compiles without training, for the devices here or for ones that nobody has paid for yet.

Where the mesh is larger than the machine, a child process has as many virtual CPU devices, and XLA
partitions the step for them as it would for real ones. Arrays are abstract throughout.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable

import jax

from jaxdl.run import hosts
from jaxdl.run.config import RunConfig
from jaxdl.run.experiment import Session
from jaxdl.run.finish import device_name
from jaxdl.run.progress import phase, say
from jaxdl.run.report import parameter_table
from jaxdl.train.loop import Feed
from jaxdl.train.program import Compiled
from jaxdl.train.sharding import parse_mesh
from jaxdl.train.state import TrainState
from jaxdl.types import PyTree

VIRTUAL = "--xla_force_host_platform_device_count"


def dry_run(
    config: RunConfig, start: Callable[[], Session], again: Callable[[], None]
) -> int | None:
    """Prints what a step would take; returns the status of the child process, if there was one.

    Args:
      config: names the mesh.
      start: starts the session on this process's devices.
      again: does all of this once more, in a process that has enough devices.
    """
    place = hosts.launched(config)
    if place is not None and place[2] != 0:
        return None  # the first of several tells what they all would
    sizes = parse_mesh(config.mesh).values()
    if -1 not in sizes and math.prod(sizes) > jax.device_count():
        return on_virtual_devices(math.prod(sizes), again)
    session = start()
    with phase("compile") as note:
        program = compile_step(session)
        note.text = f"for {mesh_name(session)}"
    say(describe(session, program))
    return None


def on_virtual_devices(count: int, function: Callable[[], None]) -> int | None:
    """Runs a function in a new process that has `count` virtual CPU devices; returns its status."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {VIRTUAL}={count}".strip()
    before = dict(os.environ)
    os.environ.update(XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    try:
        child = multiprocessing.get_context("spawn").Process(target=function)
        child.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    child.join()
    return child.exitcode


def compile_step(session: Session) -> Compiled:
    """Compiles one train step of a session for its mesh; nothing is put onto a device."""
    feed = Feed(session.experiment.train, session.placement)
    return feed.compile_step(session.train_step(), session.abstract_state())


def describe(session: Session, program: Compiled) -> str:
    """Sets out what a step holds, computes and sends on each device."""
    state = session.abstract_state()
    memory = program.call.memory_analysis()
    held = held_bytes(session, state)
    lines = [parameter_table(state.params), "", "a step, on each device"]
    if program.flops:
        lines.append(row("computes", f"{program.flops / 1e9:,.4g} GFLOP", "XLA's count"))
    lines += [row(name, size(count), "exact") for name, count in held.items() if count]
    if memory is not None:
        about = f"XLA's plan for {jax.default_backend()}"
        lines.append(row("activations, gradients", size(memory.temp_size_in_bytes), about))
    if program.bytes is not None:
        lines.append(row("all, at the peak", size(program.bytes), "XLA's plan"))
    traffic = program.collectives
    for kind in sorted(traffic):
        told = f"{traffic[kind].count} x {kind}"
        lines.append(row("communicates", size(traffic[kind].bytes), told))
    if not traffic:
        lines.append(row("communicates", "nothing", ""))
    if jax.default_backend() == "cpu":
        lines += [
            "",
            "XLA planned this for CPU devices: another compiler lays out activations otherwise,",
            "and may merge or split collectives. What is exact holds anywhere.",
        ]
    return "\n".join(lines)


def held_bytes(session: Session, state: TrainState) -> dict[str, int]:
    """Counts the bytes that a device holds between steps, by what they are for."""
    whole = session.placement.replicated
    resident = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=whole)
        for name, array in session.experiment.train.arrays.items()
    }
    return {
        "parameters": bytes_a_device(state.params),
        "optimiser": bytes_a_device(state.opt_state),
        "average (EMA)": bytes_a_device(state.ema),
        "model's own state": bytes_a_device(state.model_state),
        "training data": bytes_a_device(resident),
    }


def bytes_a_device(tree: PyTree) -> int:
    """Sums the bytes of abstract arrays that one device holds, by their shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def row(name: str, amount: str, about: str) -> str:
    """Sets one line of the table."""
    return f"  {name:<24}{amount:>14}  {about}".rstrip()


def size(count: int) -> str:
    """Writes a number of bytes in the unit that fits."""
    if count < 1024:
        return f"{count} B"
    power = min(int(math.log2(count)) // 10, 3)
    return f"{count / 1024**power:,.2f} {'KMG'[power - 1]}iB"


def mesh_name(session: Session) -> str:
    """Names the mesh and the devices it is over."""
    shape = session.placement.mesh.shape
    split = ",".join(f"{axis}={n}" for axis, n in shape.items() if n > 1) or "data=1"
    virtual = " (virtual)" if VIRTUAL in os.environ.get("XLA_FLAGS", "") else ""
    return f"--mesh {split} on {device_name()}{virtual}"
