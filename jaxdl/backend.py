"""What must be settled before the first array exists: the CPU guard and the compilation cache.

Nothing here starts a JAX backend but what asks for devices; importing this module does not even
import JAX.
"""

import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

from jaxdl.errors import UserError

FUSION = "--xla_cpu_experimental_ynn_fusion_type"
SCHEDULER = "--xla_cpu_enable_concurrency_optimized_scheduler"


def guards(jaxlib_version: str) -> dict[str, str]:
    """Returns the flags that keep XLA on CPU right, fast and awake, with their values.

    jaxlib 0.10 computes some fused reductions wrongly (jax issues 39103, 39257 and 39264), and
    0.12, which is right again, still makes the gradients of convolutions slow. Both are well and
    fast where YNNPACK takes single matrix products alone.

    On two cores jaxlib 0.10 can stop in the middle of a program, all its threads idle, where it
    computes independent parts side by side: a train step of two layers of LSTM does, every time.
    One part after the other it is as fast, for the parts are parallel in themselves.

    Unknown flags abort the process, so versions that nobody has tried are left alone.
    """
    release = tuple(int(part) for part in jaxlib_version.split(".")[:2])
    flags = {FUSION: "individual_dot"} if (0, 10) <= release <= (0, 12) else {}
    return flags | ({SCHEDULER: "false"} if (0, 10) <= release <= (0, 11) else {})


def guard_cpu() -> None:
    """Appends the guards to XLA_FLAGS, but for those that the user has set already."""
    flags = os.environ.get("XLA_FLAGS", "")
    missing = {k: v for k, v in guards(version("jaxlib")).items() if k not in flags}
    if not missing:
        return
    more = " ".join(f"{flag}={value}" for flag, value in missing.items())
    if backend_started():
        warnings.warn(
            "jaxdl was imported after JAX had started, too late to keep XLA on CPU from what is"
            " slow, and on jaxlib 0.10 wrong or never ends: import jaxdl first, or set"
            f" XLA_FLAGS='{more}'",
            RuntimeWarning,
            stacklevel=3,
        )
        return
    os.environ["XLA_FLAGS"] = f"{flags} {more}".strip()


def backend_started() -> bool:
    """Tells whether JAX has started a backend, without importing JAX or starting one."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized()


def unavailable() -> str | None:
    """Returns in one line why JAX has no devices to compute on; None where it has."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter has no words
        asked = os.environ.get("JAX_PLATFORMS", "")
        silent = f"JAX_PLATFORMS={asked} finds none; without it JAX chooses among what there is"
        return " ".join(str(error).split()) or silent
    return None


def require_devices() -> None:
    """Starts JAX's backend; raises UserError where it has no devices to compute on."""
    if (reason := unavailable()) is not None:
        raise UserError(f"JAX has no devices: {reason}")


def cache_directory() -> Path:
    """Returns where compiled programs are kept: JAX's own variable, else the user's cache."""
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(root) / "jaxdl" / "xla"


class CompilationCache:
    """The persistent compilation cache, and a count of the programs that it has served."""

    def __init__(self, directory: Path | None = None):
        import jax

        self.directory = directory or cache_directory()
        self.served = 0
        self.missed = 0
        jax.config.update("jax_compilation_cache_dir", str(self.directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
        jax.monitoring.register_event_listener(self._count)

    def _count(self, event: str, **_: object) -> None:
        self.served += event == "/jax/compilation_cache/cache_hits"
        self.missed += event == "/jax/compilation_cache/cache_misses"
