"""Measures two sides in turn, A B A B ..., and says what was measured on what.

Machines change their pace from minute to minute, so two sides are only compared within one pair
of neighbouring calls, and the ratio is the median over the pairs. Its range is told beside it.

PyTorch has a process of its own (`apart`), with memory as its users' is allocated: what jaxdl's
programs ask of the C library (`jaxdl.malloc`) they ask for a whole process. The two never compute
at the same time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro

from jaxdl.errors import UserError
from jaxdl.run.workdir import git_commit, versions

Call = Callable[[], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two things that are compared."""

    name: str
    prepare: Callable[[], Call]  # builds and compiles; returns what runs, and waits for its end
    flops: float | None = None  # of one call, by the formula that the benchmark states


def apart(make: Callable[..., Side], *args: Any, **kwargs: Any) -> Side:
    """Returns the side that a module's function makes, to be run in a new process."""
    there = partial(make, *args, **kwargs)
    return dataclasses.replace(there(), prepare=lambda: Worker(there))


class Worker:
    """A process that has prepared a side, and calls it when it is told to; it ends with this."""

    def __init__(self, make: Callable[[], Side]):
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        spawn.Process(target=serve, args=(theirs, make), daemon=True).start()
        theirs.close()  # so that a process that dies is an end of the file, not an endless wait
        self.peaks: Peaks = self.pipe.recv()

    def __call__(self) -> None:
        """Calls the side, and waits for its end."""
        self.pipe.send(None)
        self.peaks = self.pipe.recv()


def serve(pipe: Connection, make: Callable[[], Side]) -> None:
    """Prepares a side and calls it for every message, until the pipe is closed."""
    side = make()
    call = side.prepare()
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(peaks(side.name))
            pipe.recv()
            call()


class Peaks(NamedTuple):
    """The most bytes that were held so far."""

    device: int | None  # by one library, None on CPU
    process: int  # of host memory


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one side."""

    side: Side
    compile_seconds: float
    seconds: list[float]
    peaks: Peaks

    def to_json(self, peak_gflops: float | None) -> dict[str, Any]:
        """States the median, and the share of the machine's peak where FLOPs are known."""
        median = statistics.median(self.seconds)
        line = {
            "name": self.side.name,
            "seconds": median,
            "seconds_min": min(self.seconds),
            "seconds_max": max(self.seconds),
            "compile_seconds": self.compile_seconds,
            "peak_device_bytes": self.peaks.device,
            "peak_process_bytes": self.peaks.process,
        }
        if self.side.flops and peak_gflops:
            gflops = self.side.flops / median / 1e9
            line |= {"gflops": gflops, "share_of_peak": gflops / peak_gflops}
        return line


def compare(
    name: str,
    a: Side,
    b: Side,
    *,
    rounds: int = 9,
    warmup: int = 2,
    peak: dict[str, float] | None = None,
    **about: Any,
) -> dict[str, Any]:
    """Measures two sides in turn and returns what is to be printed as one line of JSON.

    The ratio is time of B / time of A, above 1 where A is faster: the median over `rounds` pairs,
    with its least and its greatest. `warmup` pairs go before and are not counted. `peak` comes
    from `matmul_peak`; `about` is copied into the line.
    """
    first, second = measure(a, b, rounds=rounds, warmup=warmup)
    best = max(peak.values()) if peak else None
    return {
        "benchmark": name,
        "ratio": pairwise_ratio(first.seconds, second.seconds),
        "a": first.to_json(best),
        "b": second.to_json(best),
        "rounds": rounds,
        "warmup": warmup,
        **about,
        "peak_gflops": peak,
        **environment(),
    }


def measure(a: Side, b: Side, *, rounds: int, warmup: int) -> tuple[Timing, Timing]:
    """Prepares both sides, then calls them in turn: a timing of each, `rounds` calls long."""
    sides, calls, compiling = (a, b), [], []
    for side in sides:
        started = time.perf_counter()
        calls.append(side.prepare())
        compiling.append(time.perf_counter() - started)
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(warmup + rounds):
        for call, times in zip(calls, seconds, strict=True):
            started = time.perf_counter()
            call()
            if round_ >= warmup:
                times.append(time.perf_counter() - started)
    held = [
        call.peaks if isinstance(call, Worker) else peaks(side.name)
        for side, call in zip(sides, calls, strict=True)
    ]
    both = [Timing(*row) for row in zip(sides, compiling, seconds, held, strict=True)]
    return both[0], both[1]


def pairwise_ratio(a: list[float], b: list[float]) -> dict[str, float]:
    """Returns the median, least and greatest of b[i] / a[i]."""
    ratios = [late / early for early, late in zip(a, b, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def matmul_peak(dtype: str = "float32", *, repeats: int = 5) -> dict[str, float]:
    """Measures the machine's own matrix product, in GFLOP/s, by jax and by torch.

    Of each the best over several sizes n: 2 n^3 operations in the least time. Shares of the peak
    are of the larger of the two. On a GPU both may use TF32 for float32, as the steps may.
    """
    sizes = (512, 1024, 2048) if jax.default_backend() == "cpu" else (2048, 4096, 8192)
    product = jax.jit(jnp.dot)
    rates = {"jax": 0.0}
    for n in sizes:
        x = jnp.ones((n, n), dtype)
        seconds = least_seconds(lambda x=x: jax.block_until_ready(product(x, x)), repeats)
        rates["jax"] = max(rates["jax"], 2 * n**3 / seconds / 1e9)
    with contextlib.suppress(UserError):
        torch = import_torch()
        rates["torch"] = 0.0
        device = torch_device()
        for n in sizes:
            y = torch.ones((n, n), dtype=getattr(torch, dtype), device=device)
            seconds = least_seconds(lambda y=y: finish(y @ y), repeats)
            rates["torch"] = max(rates["torch"], 2 * n**3 / seconds / 1e9)
    return rates


def least_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Returns the least time of several calls, after one that is not counted."""
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def import_torch() -> Any:
    """Imports PyTorch, free to take TF32 for float32 on a GPU, as XLA does; or raises UserError."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "this benchmark compares with PyTorch: pip install 'jaxdl[reference]'"
        ) from error
    if torch_device() != "cpu" and not torch.cuda.is_available():
        raise UserError(
            f"jax has a {jax.default_backend()} here and torch has none: install a CUDA build of"
            " torch, or compare on the CPU with JAX_PLATFORMS=cpu"
        )
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return torch


def torch_device() -> str:
    """Returns PyTorch's name for the kind of device that JAX runs on."""
    return "cpu" if jax.default_backend() == "cpu" else "cuda"


def torch_name(compiled: bool) -> str:
    """Names a side that is PyTorch's."""
    return "torch.compile" if compiled else "torch, eager"


def finish(tensor: Any) -> None:
    """Waits until a tensor of PyTorch is computed."""
    if tensor.is_cuda:
        import torch

        torch.cuda.synchronize()


def peaks(library: str) -> Peaks:
    """Returns the most bytes held so far: on the device by what is named after a library."""
    process = peak_process_bytes()
    if jax.default_backend() == "cpu":
        return Peaks(None, process)
    if library.startswith("torch"):
        return Peaks(import_torch().cuda.max_memory_allocated(), process)
    return Peaks((jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"), process)


def peak_process_bytes() -> int:
    """Returns the most host memory that this process has held so far."""
    with contextlib.suppress(OSError), open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith("VmHWM:"):  # getrusage counts that of its parent on Linux, too
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment() -> dict[str, Any]:
    """States the device, the versions and the commit."""
    found = dict(versions())
    with contextlib.suppress(PackageNotFoundError):
        found["torch"] = version("torch")
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": processor() if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "cores": cores,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": found,
        "git_commit": git_commit(),
    }


def processor() -> str:
    """Returns the name of the CPU."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def run(main: Callable[[Any], None], options: type, description: str | None) -> None:
    """Runs a benchmark with the options of the command line; a mistake of theirs is one line."""
    # Two processes share a GPU, so neither may take most of its memory before it needs it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        main(tyro.cli(options, description=description))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def emit(line: dict[str, Any]) -> None:
    """Prints one line of JSON."""
    print(json.dumps(line), flush=True)
