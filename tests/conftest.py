"""The ground of every test: eight virtual CPU devices, and annotations that are checked.

It has to be settled before JAX starts and before jaxdl is imported, so most of it is done here, on
import. Subprocesses inherit the environment.
"""

import gc
import os
from importlib.metadata import version
from pathlib import Path

import pytest
from jaxtyping import config as annotations
from jaxtyping import install_import_hook
from threadpoolctl import threadpool_limits

import tests.annotations  # noqa: F401  (the hook asks for it by name)

os.environ["JAX_PLATFORMS"] = "cpu"
# Threads that wait for one another spin, for ever so long where others have the cores: each process
# of the suite has its own, and BLAS keeps to one thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores, count = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) % len(cores) :: count])
# Tests that start a run share what it compiles, and leave the user's own cache alone.
cache = Path(__file__).parents[1] / ".pytest_cache" / "xla"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
# Nor do they see which datasets the user has prepared: TFDS reads this as it is imported.
os.environ["TFDS_DATA_DIR"] = str(cache.with_name("no-datasets"))

# The time goes into compiling, much of it into LLVM's expensive passes. "false" has programs as
# they are for users: so `.ci/run` compares with PyTorch, and has the slow tests, and those on a
# second Python.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
flags = ["--xla_force_host_platform_device_count=8"]
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "true" and version("jaxlib").startswith("0.10."):
    # Its older way from loops to LLVM compiles in half the time; jaxlib 0.12 has no other.
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()

# Outside the tests the annotations are documentation; here a wrong shape or type raises.
install_import_hook("jaxdl", "tests.annotations.checked")

import jaxdl  # noqa: E402, F401  (before JAX starts: its guard appends a flag too)

import jax  # noqa: E402  isort: skip

# Files that hand NumPy arrays to functions on JAX arrays, or test what jaxdl itself says of wrong
# shapes, where the checked annotations would be first to speak.
UNCHECKED = {"test_losses.py", "test_images_laws.py"}
# Files whose functions broadcast [b, h, w, c] with [c] on purpose, and those that run them all.
BROADCASTING = {"test_images.py", "test_images_laws.py", "test_experiments.py", "test_parallel.py"}
BROADCASTING |= {path.name for path in (Path(__file__).parent / "run").glob("test_*.py")}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Has as many processes as cores."""
    if number := os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return int(number)
    here = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    return len(here)


def pytest_collection_finish() -> None:
    """Has what is imported, and the many small objects of tracing, looked through less often."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
    threadpool_limits(1)  # of what pytest's plugins have imported before the variables were set


@pytest.fixture(autouse=True, scope="module")
def _strictness(request):
    """Makes [b] + [b, 1] raise, which would make b x b numbers, in silence."""
    promotion = "allow" if request.path.name in BROADCASTING else "raise"
    annotations.update("jaxtyping_disable", request.path.name in UNCHECKED)
    with jax.numpy_rank_promotion(promotion):
        yield
    annotations.update("jaxtyping_disable", False)
