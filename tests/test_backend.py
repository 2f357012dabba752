"""The guard of the CPU backend, and that importing jaxdl stays light."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest

from jaxdl import backend

FLAG = backend.FUSION
GUARDS = backend.guards(jax.lib.__version__)
guarded = pytest.mark.skipif(not GUARDS, reason="a jaxlib that is left alone")


def in_a_process(code, flags=""):
    """Runs `code` under these XLA flags alone, optimised as for users; gives what it prints."""
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "XLA_FLAGS": flags}
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(code)],
        env=os.environ | environment | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def test_the_canary_a_fused_reduction_is_right():
    """jaxlib 0.10 gets it wrong, unless guarded: jax issue 39103."""
    code = """
        import jaxdl, jax, jax.numpy as jnp, numpy as np
        rng = np.random.default_rng(0)
        rows = rng.normal(size=(40_000, 3)).astype(np.float32)
        matrix = np.eye(3, dtype=np.float32)
        energy = jax.jit(jax.vmap(lambda r: jnp.sum((matrix @ r) ** 2)))
        want = np.sum(np.square(rows.astype(np.float64)), axis=1)
        np.testing.assert_allclose(energy(rows), want, rtol=1e-5)
    """
    in_a_process(code)


def test_independent_products_in_a_loop_come_to_an_end():
    """Without its guard jaxlib 0.10 waits here forever on two cores, with nothing to do."""
    code = """
        import jax, jax.numpy as jnp
        from jaxdl.models import RecurrentLM
        model = RecurrentLM(100, width=512, layers=2)
        tokens = jnp.zeros((64, 4), jnp.int32)
        params = jax.jit(lambda: model.init(jax.random.key(0), tokens, train=False))()
        loss = lambda params: jnp.sum(model.apply(params, tokens, train=False)[0])
        jax.block_until_ready(jax.jit(jax.grad(loss))(params))
    """
    in_a_process(code)


def test_the_tests_themselves_run_guarded():
    assert all(flag in os.environ["XLA_FLAGS"] for flag in GUARDS)
    assert jax.device_count() == 8


@pytest.mark.parametrize(
    ("version", "appended"),
    [
        ("0.9.2", ""),
        ("0.10.0", f" {FLAG}=individual_dot {backend.SCHEDULER}=false"),
        ("0.10.2", f" {FLAG}=individual_dot {backend.SCHEDULER}=false"),
        ("0.12.0.1", f" {FLAG}=individual_dot"),
        ("0.13.0", ""),
        ("1.10.0", ""),
    ],
)
def test_versions_that_nobody_has_tried_are_left_alone(version, appended, monkeypatch):
    monkeypatch.setattr(backend, "version", lambda package: version)
    monkeypatch.setattr(backend, "backend_started", lambda: False)
    monkeypatch.setenv("XLA_FLAGS", "--other=1")
    backend.guard_cpu()
    assert os.environ["XLA_FLAGS"] == f"--other=1{appended}"


@guarded
@pytest.mark.parametrize("flags", ["", "--xla_force_host_platform_device_count=2"])
def test_the_guard_appends_its_flags_once_and_xla_takes_them(flags):
    code = """
        import os, jaxdl, jax
        jaxdl.guard_cpu()
        print(os.environ["XLA_FLAGS"], jax.device_count())
    """
    words = in_a_process(code, flags).stdout.split()
    assert words[:-1] == [*flags.split(), *(f"{k}={v}" for k, v in GUARDS.items())]
    assert words[-1] == ("2" if flags else "1")


@guarded
@pytest.mark.parametrize("code", ["import jaxdl", "import jax; jax.devices(); import jaxdl"])
def test_the_users_own_flag_is_respected_without_a_word(code):
    own = [f"{flag}=true" if flag == backend.SCHEDULER else f"{flag}=-reduce" for flag in GUARDS]
    done = in_a_process(f"{code}\nimport os; print(os.environ['XLA_FLAGS'])", " ".join(own))
    assert done.stdout.split() == own
    assert "RuntimeWarning" not in done.stderr


@guarded
def test_a_guard_that_comes_too_late_warns_at_the_import():
    done = in_a_process("import jax; jax.devices()\nimport jaxdl\nimport os; print(os.environ)")
    assert "RuntimeWarning: jaxdl was imported after JAX had started" in done.stderr
    assert f"XLA_FLAGS='{FLAG}=" in done.stderr
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
