"""Looks the installation over.

`python -m jaxdl.doctor` prints versions, devices, the compilation cache, the data at hand, and what
is known to go wrong with this combination. Its exit status is 1 where there is a problem, else 0.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jaxdl import __version__
from jaxdl.backend import cache_directory, guards, unavailable

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets",
    "array-record", "numpy", "scikit-learn", "torch", "tensorflow", "tensorflow-cpu",
)  # fmt: skip


def main() -> None:
    """Prints the findings."""
    print(f"jaxdl {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in PACKAGES:
        print(f"  {name:<20} {installed(name) or '-'}")
    devices()
    cache()
    data()
    wrong = list(problems())
    for line in wrong:
        print(f"PROBLEM   {line}")
    print("nothing is known to be wrong here" if not wrong else f"{len(wrong)} problem(s)")
    raise SystemExit(1 if wrong else 0)


def installed(name: str) -> str | None:
    """Returns the version of a package, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def devices() -> None:
    """Prints the devices and their memory."""
    import jax

    for device in jax.devices() if unavailable() is None else ():
        memory = (
            (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
        )
        size = f", {memory / 2**30:.0f} GiB" if memory else ""
        print(f"device    {device.id}: {device.device_kind} ({device.platform}{size})")
    print(f"cpu       {os.cpu_count()} cores; XLA_FLAGS={os.environ.get('XLA_FLAGS', '')}")


def cache() -> None:
    """Prints where compiled programs are kept, and how much room they take."""
    directory = cache_directory()
    files = [f for f in directory.rglob("*") if f.is_file()] if directory.is_dir() else []
    size = sum(f.stat().st_size for f in files) / 2**20
    print(f"cache     {directory}: {len(files)} files, {size:.0f} MiB")


def data() -> None:
    """Prints which data can be read at once, and what it takes to prepare more."""
    root = Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")
    # Not what TFDS keeps beside them: its downloads, and what it has not prepared to the end.
    infos = [*root.glob("*/[0-9]*/dataset_info.json"), *root.glob("*/*/[0-9]*/dataset_info.json")]
    prepared = sorted({info.relative_to(root).parts[0] for info in infos})
    print(f"data      digits (embedded); prepared in {root}: {', '.join(prepared) or 'none'}")
    if importlib.util.find_spec("tensorflow") is None:
        print("data      TensorFlow is absent: preparing more needs pip install -e '.[prepare]'")


def problems() -> Iterator[str]:
    """Yields what is wrong, or known to go wrong, with this combination."""
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    expected = guards(version("jaxlib"))
    if (reason := unavailable()) is not None:
        yield f"JAX has no devices: {reason}"
    elif jax.default_backend() == "cpu" and not reductions_are_right():
        yield (
            f"this jaxlib computes fused reductions wrongly with XLA_FLAGS={flags!r}: set"
            f" XLA_FLAGS='{' '.join(f'{k}={v}' for k, v in expected.items())}'"
        )
    if not expected:
        yield f"jaxlib {version('jaxlib')} is none of those jaxdl was tried with (0.10 and 0.12)"
    if os.environ.get("JAX_ENABLE_X64", "").lower() in ("1", "true"):
        yield "JAX_ENABLE_X64 is set: jaxdl computes in float32 and is not tried with it"
    if installed("tensorflow") and installed("tensorflow-cpu"):
        yield "tensorflow and tensorflow-cpu are both installed: pip uninstall one of them"
    if sys.flags.optimize:
        yield "Python runs with -O: assertions are off"


def reductions_are_right() -> bool:
    """Computes the canary of jax issue 39103: a fused sum of squares over many rows."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rows = np.random.default_rng(0).normal(size=(40_000, 3)).astype(np.float32)
    matrix = jnp.eye(3)
    fused = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(rows)
    return bool(np.allclose(fused, (rows**2).sum(1), rtol=1e-4))


if __name__ == "__main__":
    main()
