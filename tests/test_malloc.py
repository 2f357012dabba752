"""Memory is kept where a program owns its process, and nowhere else."""

import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jaxdl import malloc

ROOT = Path(__file__).parents[1]
PLAIN = {k: v for k, v in os.environ.items() if not malloc.is_settled({k: v})}


on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another")


def in_a_process(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=PLAIN | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


FAULTS = """
    import resource
    import jax, jax.numpy as jnp
    from jaxdl.malloc import keep_memory
    {before}
    x = jnp.ones((100, 2**18))  # 100 MiB, more than the heap of any thread but the main one
    program = jax.jit(lambda x: jax.lax.optimization_barrier(x + 1).mean()).lower(x).compile()
    assert program.memory_analysis().temp_size_in_bytes > 100 * 2**20
    counts = []
    for _ in range(6):  # at first the heap finds its size, perhaps on more than one thread
        start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        program(x).block_until_ready()
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
    print(min(counts))
"""


@on_glibc
def test_the_temporaries_of_a_step_fault_at_first_and_not_at_every_step():
    """Each time, were it not for `keep_memory`: an import changes nothing."""
    plain, kept = (
        float(in_a_process(FAULTS.format(before=before), JAX_PLATFORMS="cpu").stdout)
        for before in ("import jaxdl.models", "assert keep_memory()")
    )
    assert plain > 100  # 25,600 where pages have 4 KiB
    assert kept < plain / 10


@pytest.mark.parametrize(
    "environment",
    [
        {"MALLOC_ARENA_MAX": "2"},
        {"MALLOC_MMAP_THRESHOLD_": "1000000"},
        {"GLIBC_TUNABLES": "glibc.cpu.x86_ibt=off:glibc.malloc.hugetlb=1"},
        {"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_the_users_choice_stands(environment, monkeypatch):
    assert malloc.is_settled(environment)
    monkeypatch.setattr(malloc.os, "environ", environment)
    monkeypatch.setattr(malloc.ctypes, "CDLL", fail)
    assert malloc.keep_memory() is False


def test_other_settings_are_no_choice():
    assert not malloc.is_settled({"GLIBC_TUNABLES": "glibc.cpu.x86_ibt=off", "LD_PRELOAD": "x.so"})


def fail(*_):
    raise AssertionError("the C library was opened")


class Empty:
    """A C library without what is looked for."""


class Refusing:
    """A glibc that takes no setting."""

    def gnu_get_libc_version(self):
        return b"2.36"

    def mallopt(self, name, value):
        return 0


@pytest.mark.parametrize("library", [Empty, Refusing])
def test_elsewhere_it_does_no_harm(library, monkeypatch):
    monkeypatch.setattr(malloc, "is_settled", lambda environment: False)
    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda name: library())
    assert malloc.keep_memory() is False
    monkeypatch.setattr(malloc.ctypes, "CDLL", fail)
    for system in ("darwin", "win32"):
        monkeypatch.setattr(malloc.sys, "platform", system)
        assert malloc.keep_memory() is False


def test_a_command_line_keeps_memory(monkeypatch):
    from jaxdl.run import cli

    kept = []
    monkeypatch.setattr(cli, "keep_memory", lambda: kept.append(True))
    script = cli.Script(name="none", presets={"only": None}, build=fail)
    with pytest.raises(SystemExit):
        script.main(["no-such-preset"])
    assert kept
