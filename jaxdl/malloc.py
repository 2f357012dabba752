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
    # No block is mapped by itself. What the heap of a thread cannot hold, which ends at 64 MiB,
    # glibc maps all the same: larger programs gain nothing by this, and take no more memory.
    M_MMAP_MAX: 0,
    # So many bytes may lie free at the end of a heap: all that one of a thread's has. Without this
    # it would be 128 KiB, for the first setting keeps glibc from learning better.
    M_TRIM_THRESHOLD: 64 * 2**20,
}


def keep_memory() -> bool:
    """Has glibc keep some of what is freed, for the next who asks; tells whether it does now.

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
    return all(mallopt(name, value) == 1 for name, value in SETTINGS.items())


def is_settled(environment: Mapping[str, str]) -> bool:
    """Tells whether the environment chooses an allocator, or glibc's settings."""
    return (
        any(name.startswith("MALLOC_") for name in environment)
        or "glibc.malloc." in environment.get("GLIBC_TUNABLES", "")
        or "malloc" in environment.get("LD_PRELOAD", "")
    )
