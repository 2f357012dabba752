"""Laws of the checksum: it is the same however an array is split, and another for another array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdl.train.checksum import checksum, checksums
from jaxdl.train.sharding import make_mesh

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(8, 3, 4)).astype(np.float32)


def by_formula(values):
    bits = np.asarray(values).view(f"u{values.dtype.itemsize}").ravel()
    return sum(int(b) * (2 * i + 1) for i, b in enumerate(bits)) % 2**64


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int32, np.uint8, np.bool_])
def test_it_follows_its_formula(dtype):
    values = (9 * VALUES).astype(dtype)
    assert checksum(values) == checksum(jnp.asarray(values)) == by_formula(values)


def test_scalars_and_empty_arrays_have_one():
    assert checksums([np.float32(0), jnp.int32(7), np.zeros((3, 0))]) == [0, 7, 0]


@pytest.mark.parametrize(
    "spec",
    [P(), P("data"), P(None, None, "fsdp"), P("fsdp", None, "data"), P(("data", "fsdp"))],
)
def test_it_is_the_same_however_an_array_is_split(spec):
    mesh = make_mesh({"data": 2, "fsdp": 4})
    split = jax.device_put(VALUES, NamedSharding(mesh, spec))
    assert checksum(split) == by_formula(VALUES)


def test_any_change_of_a_bit_an_order_or_a_place_changes_it():
    want = checksum(VALUES)
    for place in np.ndindex(VALUES.shape):
        for bit in (0, 17, 31):
            changed = VALUES.copy()
            changed.view(np.uint32)[place] ^= np.uint32(1 << bit)
            assert checksum(changed) != want
    assert checksum(VALUES[::-1].copy()) != want
    assert checksum(VALUES.swapaxes(0, 2).copy()) != want
    swapped = VALUES.copy()
    swapped[0, 0, 0], swapped[0, 0, 1] = VALUES[0, 0, 1], VALUES[0, 0, 0]
    assert checksum(swapped) != want
