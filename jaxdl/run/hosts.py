"""Several processes as one run: how they find each other, agree, and wait for each other.

The engine is JAX's own: `jax.distributed`, its detection of clusters, its key-value store, its
barriers and its preemption service. On one process everything here does nothing, at no cost.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax._src import clusters, distributed  # what jax.distributed keeps to itself
from jax.experimental import multihost_utils

from jaxdl.errors import RunFailed, UserError
from jaxdl.run.config import HostsConfig
from jaxdl.run.progress import mute
from jaxdl.run.rollcall import RollCall, named
from jaxdl.types import PyTree

# How many processes a launcher has started, as it says in their environment. SLURM_NTASKS is not
# among them: it is set for the whole allocation, also in a shell that is one process of it.
LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")

T = TypeVar("T")
Place = tuple[str, int, int, Sequence[int] | None]  # coordinator, count, number, local devices


class Left(SystemExit):
    """A signal to this process ends the run at once, without asking the others."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


class _Settled:
    """What `joined` settles for the whole process, as JAX's own runtime is one for all of it."""

    seconds = 300.0
    uses = itertools.count()  # equal in all processes, which agree and wait at the same places


def several() -> bool:
    """Tells whether the run has several processes; starts no backend."""
    return distributed.global_state.client is not None


def is_first() -> bool:
    """Tells whether this is process 0, the one that prints and writes."""
    return distributed.global_state.process_id == 0


@contextlib.contextmanager
def joined(config: HostsConfig) -> Iterator[None]:
    """Makes this process one of the run's for the block; it has to come before any array.

    At its end all wait for each other. Where one fails, all end with its words and its status;
    where one is gone, all end with its number, and status 1. Raises UserError where there is no
    cluster although there should be one, RunFailed where not all come.
    """
    place = launched(config)
    if place is None:
        yield
        return
    address, count, process, local = place
    if process:
        mute()
    _Settled.seconds = config.barrier_seconds
    call = RollCall(address, process=process, count=count, seconds=config.barrier_seconds)
    with _telling(call):
        jax.distributed.initialize(
            address, count, process, local,
            initialization_timeout=max(int(config.barrier_seconds), 1),
            cluster_detection_method="deactivate",
        )  # fmt: skip
        barrier("start")
        try:
            yield
        except Left:
            raise
        except SystemExit:  # a signal, on which all have agreed
            _part(call)
            raise
        _part(call)


def launched(config: HostsConfig) -> Place | None:
    """Finds out, by the options or by what JAX detects, where this process stands; None if alone.

    Without --coordinator that is asked of JAX only where a launcher says that there are several.
    """
    if config.coordinator == "none":
        return None
    given = (config.num_processes, config.process_id)
    if config.coordinator not in (None, "auto"):
        if None in given:
            raise UserError("--coordinator HOST:PORT needs --num-processes and --process-id")
        count, process = given
        if not 0 <= process < count:  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
            raise UserError(f"--process-id {process} is not one of {count}, counted from 0")
        return (config.coordinator, count, process, None) if count > 1 else None  # pyright: ignore
    if given != (None, None):
        raise UserError("--num-processes and --process-id need --coordinator HOST:PORT")
    if config.coordinator is None and all(os.environ.get(n, "1") == "1" for n in LAUNCHERS):
        return None
    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, int(config.barrier_seconds)
    )
    address, count, process, local = found
    if address is None or count is None or process is None:
        raise UserError(
            "--coordinator auto: JAX detects no cluster here; give --coordinator HOST:PORT,"
            " --num-processes and --process-id, or --coordinator none for a run of one process"
        )
    return (address, count, process, local) if count > 1 else None


@contextlib.contextmanager
def _telling(call: RollCall) -> Iterator[None]:
    """Tells the other processes why this one fails."""
    try:
        yield
    except Left as leaving:
        call.fail("interrupted", leaving.status)
        raise
    except SystemExit:
        raise
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            call.await_verdict()
        status = {UserError: 2, KeyboardInterrupt: 130}.get(type(error), 1)
        call.fail(str(error) or type(error).__name__, status)
        raise


def _part(call: RollCall) -> None:
    """Ends the run in good order: everybody has come to the end."""
    barrier("exit")
    jax.distributed.shutdown()
    call.leave()


def barrier(name: str) -> None:
    """Waits until all processes are here.

    Raises RunFailed, naming those that are not, after --barrier-seconds.
    """
    client, me = distributed.global_state.client, distributed.global_state
    if client is None:
        return
    room = f"jaxdl/{next(_Settled.uses)} {name}/"
    client.key_value_set(f"{room}{me.process_id}", "here")
    try:
        client.wait_at_barrier(room, _milliseconds())
    except jax.errors.JaxRuntimeError as error:
        here = {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get(room)}
        absent = named(set(range(me.num_processes)) - here)
        raise RunFailed(
            f"{absent} did not come to {name!r} within {_Settled.seconds:g} s"
            " (--barrier-seconds): look there for what holds it up"
        ) from error


def by_first(value: T) -> T:
    """Returns process 0's value, plain JSON, in all processes: what only one can decide."""
    client, me = distributed.global_state.client, distributed.global_state
    if client is None:
        return value
    key = f"jaxdl/{next(_Settled.uses)}"
    if me.process_id == 0:
        client.key_value_set(key, json.dumps(value))
        return value
    try:
        return json.loads(client.blocking_key_value_get(key, _milliseconds()))
    except jax.errors.JaxRuntimeError as error:
        raise RunFailed(
            f"process 0 has not come this far within {_Settled.seconds:g} s (--barrier-seconds)"
        ) from error


def gathered(tree: PyTree) -> PyTree:
    """Fetches arrays that may be spread over processes as arrays of NumPy, whole, in each."""
    return jax.tree.map(
        lambda x: (
            np.asarray(x)
            if not isinstance(x, jax.Array) or x.is_fully_replicated or x.is_fully_addressable
            else multihost_utils.process_allgather(x, tiled=True)
        ),
        tree,
    )


def _milliseconds() -> int:
    return max(int(1000 * _Settled.seconds), 1)
