"""Keeps the C library from giving memory back that the next step asks for again.

XLA on CPU allocates a program's temporaries anew at every call. glibc maps each block of more than
32 MiB by itself and unmaps it when it is freed, so that at the next step the kernel clears all of
its pages again: ten thousand page faults a step of a small GPT, and 40% of its time.
"""

import ctypes
import os
import sys
from collections.abc import Mapping

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # as malloc.h has them

SETTINGS = {
    # No block is mapped by itself, but where the thread's heap cannot hold it: that ends at
    # 64 MiB, and only the main thread's has no end.
    M_MMAP_MAX: 0,
    # So many bytes may lie free at the end of a heap, the most that glibc can be told. Without this
    # it would be 128 KiB, for the first setting keeps glibc from learning better.
    M_TRIM_THRESHOLD: 2**31 - 1,
}


def keep_memory() -> bool:
    """Has glibc keep what is freed, for the next who asks, and tells whether it does now.

    From here on JAX computes on CPU within the call that asks for it, not beside the caller in a
    thread of its own, whose heap would end at 64 MiB. Call it from the main thread, before the
    first array exists. Then blocks of any size are kept, 2 GiB in all: the process stays as large
    as it has been at most.

    It changes the whole process, and is for what owns one, such as a command line; importing jaxdl
    does not do it. Where the environment has settled how memory is allocated, and elsewhere than on
    Linux with glibc, nothing happens.
    """
    if not sys.platform.startswith("linux") or is_settled(os.environ):
        return False
    try:
        library = ctypes.CDLL(None)
        _, mallopt = library.gnu_get_libc_version, library.mallopt  # others only pretend to have it
    except (OSError, AttributeError):
        return False
    if not all(mallopt(name, value) == 1 for name, value in SETTINGS.items()):
        return False
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return True


def is_settled(environment: Mapping[str, str]) -> bool:
    """Tells whether the environment chooses an allocator, or glibc's settings."""
    return (
        any(name.startswith("MALLOC_") for name in environment)
        or "glibc.malloc." in environment.get("GLIBC_TUNABLES", "")
        or "malloc" in environment.get("LD_PRELOAD", "")
    )
