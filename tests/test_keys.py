"""A derived key depends on its path alone, and on all of its path."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxdl.keys import derive

KEY = jax.random.key(5)


def bits(key):
    return tuple(jax.random.key_data(key).ravel().tolist())


def test_different_paths_give_different_keys():
    words = ["dropout", "noise", "0", 0, 1, 2, 2**32 - 1]
    paths = [path for n in range(3) for path in itertools.product(words, repeat=n)]
    assert len({bits(derive(KEY, *path)) for path in paths}) == len(paths)


def test_order_and_the_first_key_matter():
    assert bits(derive(KEY, "a", "b")) != bits(derive(KEY, "b", "a"))
    assert bits(derive(KEY, "a")) != bits(derive(jax.random.key(6), "a"))


def test_a_path_is_derived_in_parts_or_at_once():
    assert bits(derive(KEY, 3, "dropout", 4)) == bits(derive(derive(KEY, 3), "dropout", 4))


def test_no_path_is_the_key_itself():
    assert bits(derive(KEY)) == bits(KEY)


@pytest.mark.parametrize("step", [0, 1, 2**31 - 1])
def test_a_traced_step_is_a_number(step):
    traced = jax.jit(lambda step: derive(KEY, step, "dropout"))(jnp.int32(step))
    assert bits(traced) == bits(derive(KEY, step, "dropout"))


def test_steps_are_vectorised():
    steps = jnp.arange(3)
    stacked = jax.vmap(lambda step: derive(KEY, step))(steps)
    assert [bits(key) for key in stacked] == [bits(derive(KEY, step)) for step in range(3)]


def test_another_process_derives_the_same_key():
    """Python's own hash of a string would not: it is salted afresh in every process."""
    program = (
        "import jax; from jaxdl.keys import derive;"
        "print(tuple(jax.random.key_data(derive(jax.random.key(5), 'noise', 3)).tolist()))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert found.stdout.strip() == str(bits(derive(KEY, "noise", 3)))
