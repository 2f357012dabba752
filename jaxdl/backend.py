"""What must be settled before the first array exists: the CPU guard and the compilation cache.

Nothing here starts a JAX backend; importing this module does not even import JAX.
"""

import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

FUSION_FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def fusion_value(jaxlib_version: str) -> str | None:
    """Returns how far to restrict XLA's YNNPACK fusion on CPU; None leaves XLA as it is.

    jaxlib 0.10 computes some fused reductions wrongly (jax issues 39103, 39257 and 39264), and
    0.12, which is right again, still makes the gradients of convolutions slow. Both are well and
    fast where YNNPACK takes single matrix products alone. Unknown flags abort the process, so
    versions that nobody has tried are left alone.
    """
    release = tuple(int(part) for part in jaxlib_version.split(".")[:2])
    return "individual_dot" if (0, 10) <= release <= (0, 12) else None


def guard_cpu() -> None:
    """Restricts the fusion, through XLA_FLAGS, unless the user has set that very flag."""
    flags = os.environ.get("XLA_FLAGS", "")
    value = fusion_value(version("jaxlib"))
    if value is None or FUSION_FLAG in flags:
        return
    if backend_started():
        warnings.warn(
            "jaxdl was imported after JAX had started, too late to keep XLA from a fusion that"
            f" is slow, and on jaxlib 0.10 wrong, on CPU: import jaxdl first, or set"
            f" XLA_FLAGS={FUSION_FLAG}={value}",
            RuntimeWarning,
            stacklevel=3,
        )
        return
    os.environ["XLA_FLAGS"] = f"{flags} {FUSION_FLAG}={value}".strip()


def backend_started() -> bool:
    """Tells whether JAX has started a backend, without importing JAX or starting one."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized()


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
