"""The guard of the CPU backend, and that importing jaxdl stays light."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import backend

FLAG = backend.FUSION_FLAG
guarded = pytest.mark.skipif(
    backend.fusion_value(jax.lib.__version__) is None, reason="a jaxlib that is left alone"
)


def in_a_process(code, flags=""):
    """Runs `code` under these XLA flags alone; gives its output and its warnings."""
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def test_the_canary_a_fused_reduction_is_right():
    """jaxlib 0.10 gets it wrong, unless guarded: jax issue 39103."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40_000, 3)).astype(np.float32)
    matrix = np.eye(3, dtype=np.float32)
    energy = jax.jit(jax.vmap(lambda r: jnp.sum((matrix @ r) ** 2)))
    want = np.sum(np.square(rows.astype(np.float64)), axis=1)
    np.testing.assert_allclose(energy(rows), want, rtol=1e-5)


def test_the_tests_themselves_run_guarded():
    assert (FLAG in os.environ["XLA_FLAGS"]) == (
        backend.fusion_value(jax.lib.__version__) is not None
    )
    assert jax.device_count() == 8


@pytest.mark.parametrize(
    ("version", "left_alone"),
    [
        ("0.9.2", True),
        ("0.10.0", False),
        ("0.10.2", False),
        ("0.11.1", False),
        ("0.12.0.1", False),
        ("0.13.0", True),
        ("1.10.0", True),
    ],
)
def test_versions_that_nobody_has_tried_are_left_alone(version, left_alone, monkeypatch):
    assert (backend.fusion_value(version) is None) == left_alone
    monkeypatch.setattr(backend, "version", lambda package: version)
    monkeypatch.setattr(backend, "backend_started", lambda: False)
    monkeypatch.setenv("XLA_FLAGS", "--other=1")
    backend.guard_cpu()
    value = backend.fusion_value(version)
    assert os.environ["XLA_FLAGS"] == ("--other=1" if left_alone else f"--other=1 {FLAG}={value}")


@guarded
@pytest.mark.parametrize("flags", ["", "--xla_force_host_platform_device_count=2"])
def test_the_guard_appends_its_flag_once_and_xla_takes_it(flags):
    code = """
        import os, jaxdl, jax
        jaxdl.guard_cpu()
        print(os.environ["XLA_FLAGS"], jax.device_count())
    """
    words = in_a_process(code, flags).stdout.split()
    assert words[:-2] == flags.split()
    assert words[-2].startswith(f"{FLAG}=")
    assert words[-1] == ("2" if flags else "1")


@guarded
@pytest.mark.parametrize("code", ["import jaxdl", "import jax; jax.devices(); import jaxdl"])
def test_the_users_own_flag_is_respected_without_a_word(code):
    own = f"{FLAG}=-reduce"
    done = in_a_process(f"{code}\nimport os; print(os.environ['XLA_FLAGS'])", own)
    assert done.stdout.split() == [own]
    assert "RuntimeWarning" not in done.stderr


@guarded
def test_a_guard_that_comes_too_late_warns_at_the_import():
    done = in_a_process("import jax; jax.devices()\nimport jaxdl\nimport os; print(os.environ)")
    assert "RuntimeWarning: jaxdl was imported after JAX had started" in done.stderr
    assert f"XLA_FLAGS={FLAG}=" in done.stderr
    assert FLAG not in done.stdout


@guarded
def test_jax_that_is_imported_but_not_started_is_not_too_late():
    done = in_a_process("import jax, jaxdl, os; print(os.environ['XLA_FLAGS'])")
    assert FLAG in done.stdout
    assert "RuntimeWarning" not in done.stderr


@pytest.mark.parametrize("module", ["jaxdl.models", "jaxdl.layers", "jaxdl.losses"])
def test_an_import_is_light_and_starts_no_backend(module):
    heavy = {"tensorflow", "tensorflow_datasets", "grain", "orbax", "matplotlib", "sklearn"}
    code = f"""
        import sys, {module}
        from jaxdl.backend import backend_started
        print(sorted({heavy!r} & set(sys.modules)), backend_started())
    """
    assert in_a_process(code).stdout.split("\n")[0] == "[] False"


def test_the_cache_lies_where_jax_or_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "chosen"))
    assert backend.cache_directory() == tmp_path / "chosen"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert backend.cache_directory() == tmp_path / "jaxdl" / "xla"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert backend.cache_directory() == Path.home() / ".cache" / "jaxdl" / "xla"


def test_a_second_process_is_served_by_the_cache(tmp_path):
    code = f"""
        from pathlib import Path
        from jaxdl.backend import CompilationCache
        cache = CompilationCache(Path({str(tmp_path)!r}))
        import jax
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.jit(lambda x: x @ x.T + 1)(jax.numpy.ones((3, 2)))
        print(cache.served > 0, cache.missed > 0)
    """
    first, second = (in_a_process(code).stdout.split() for _ in range(2))
    assert first == ["False", "True"]
    assert second == ["True", "False"]
