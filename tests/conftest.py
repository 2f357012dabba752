"""The ground of every test: eight virtual CPU devices, and annotations that are checked.

It has to be settled before JAX starts and before jaxdl is imported, so most of it is done here, on
import. Subprocesses inherit the environment.
"""

import os
import tempfile
from pathlib import Path

import pytest
from beartype import beartype
from beartype.roar import BeartypeDecorHintPep3119Exception
from jaxtyping import config as annotations
from jaxtyping import install_import_hook

os.environ["JAX_PLATFORMS"] = "cpu"
devices = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip()
# Tests that start a run share what it compiles, and leave the user's own cache alone.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / "jaxdl-tests-xla")


def checked(function):
    """Checks annotations by beartype, but for protocols, unless they are `runtime_checkable`."""
    try:
        return beartype(function)
    except BeartypeDecorHintPep3119Exception:
        return function


# Outside the tests the annotations are documentation; here a wrong shape or type raises.
install_import_hook("jaxdl", f"{__name__}.checked")

import jaxdl  # noqa: E402, F401  (before JAX starts: its guard appends a flag too)

import jax  # noqa: E402  isort: skip

# Files that hand NumPy arrays to functions on JAX arrays, or test what jaxdl itself says of wrong
# shapes, where the checked annotations would be first to speak.
UNCHECKED = {"test_losses.py", "test_images_laws.py"}
# Files whose functions broadcast [b, h, w, c] with [c] on purpose.
BROADCASTING = {"test_images.py", "test_images_laws.py"}


@pytest.fixture(autouse=True, scope="module")
def _strictness(request):
    """Makes [b] + [b, 1] raise, which would make b x b numbers, in silence."""
    promotion = "allow" if request.path.name in BROADCASTING else "raise"
    annotations.update("jaxtyping_disable", request.path.name in UNCHECKED)
    with jax.numpy_rank_promotion(promotion):
        yield
    annotations.update("jaxtyping_disable", False)
