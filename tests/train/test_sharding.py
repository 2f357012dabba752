"""Laws of the devices: they are told apart by their number alone, never by the numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from tiny import assert_close, make_loss, make_source, make_state, to_numpy

from jaxdl.data import Resident
from jaxdl.errors import UserError
from jaxdl.train import fit, make_train_step
from jaxdl.train.sharding import Placement, make_mesh, parse_mesh


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({"data": 1}, (1,)),
        ({"data": 5}, (5,)),
        ({"data": -1}, (8,)),
        ({"data": 2, "fsdp": 3}, (2, 3)),
        ({"data": -1, "fsdp": 4}, (2, 4)),
    ],
)
def test_a_mesh_has_the_sizes_asked_for_over_the_first_devices(sizes, shape):
    mesh = make_mesh(sizes)
    assert mesh.devices.shape == shape
    assert mesh.axis_names == tuple(sizes)
    assert list(mesh.devices.ravel()) == jax.devices()[: mesh.size]
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 9}, r"does not fit the 8 device"),
        ({"data": 3, "fsdp": 3}, r"does not fit the 8 device"),
        ({"data": -1, "fsdp": 3}, r"does not fit the 8 device"),
        ({"data": 0}, "sizes are positive"),
        ({"data": -2}, "sizes are positive"),
        ({"data": -1, "fsdp": -1}, "at most one is -1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(UserError, match=rf"--mesh.*{message}"):
        make_mesh(sizes)


def test_a_mesh_is_parsed():
    assert parse_mesh("data=4") == {"data": 4}
    assert parse_mesh(" data=-1 ") == {"data": -1}


@pytest.mark.parametrize("text", ["", "data", "data=", "data=two", "data=1.5", "date=2", "4"])
def test_a_mesh_that_cannot_be_parsed_is_told_with_the_part_that_is_wrong(text):
    with pytest.raises(UserError, match=rf"--mesh {text}: '{text}' is not of the form data=N"):
        parse_mesh(text)


@pytest.mark.parametrize("text", ["data=--2", "data=2,data=3", "data=²"])
def test_no_text_makes_another_error_than_the_users(text):
    with pytest.raises(UserError, match="--mesh"):
        make_mesh(parse_mesh(text))


def test_a_batch_that_does_not_split_names_the_flag_and_the_next_good_value():
    placement = Placement.over({"data": 4})
    placement.check(24, flag="--batch-size", accum=3)
    with pytest.raises(UserError, match=r"--batch-size 26 .* 4 device.*use --batch-size 28"):
        placement.check(26, flag="--batch-size")
    with pytest.raises(UserError, match=r"--eval-size 26 .*3 microbatches.*use --eval-size 36"):
        placement.check(26, flag="--eval-size", accum=3)


def test_a_batch_is_split_and_a_state_is_replicated():
    placement = Placement.over({"data": 4})
    rows = np.arange(24).reshape(12, 2)
    split = placement.split({"x": rows})["x"]
    stacked = placement.split({"x": rows.reshape(3, 4, 2)}, stacked=True)["x"]
    whole = placement.replicate({"x": rows})["x"]
    assert {shard.data.shape for shard in split.addressable_shards} == {(3, 2)}
    assert {shard.data.shape for shard in stacked.addressable_shards} == {(3, 1, 2)}
    assert [shard.data.shape for shard in whole.addressable_shards] == [(12, 2)] * 4
    for array in (split, stacked.reshape(12, 2), whole):
        np.testing.assert_array_equal(array, rows)


def test_a_model_with_an_embedding_runs_over_the_mesh():
    """Under Explicit axes, JAX's own default, it would raise ShardingTypeError."""
    placement = Placement.over()
    model = nn.Sequential([nn.Embed(11, 6), nn.Dense(4)])
    tokens = np.arange(32, dtype=np.int32).reshape(16, 2) % 11
    params = model.init(jax.random.key(0), jnp.asarray(tokens))

    def loss(params, tokens):
        return jnp.square(model.apply(params, tokens)).mean()

    want = jax.grad(loss)(params, tokens)
    batch = placement.split({"tokens": tokens})["tokens"]
    with jax.set_mesh(placement.mesh):
        assert_close(jax.jit(jax.grad(loss))(placement.replicate(params), batch), want)


@pytest.mark.parametrize("accum", [1, 2])
def test_many_devices_equal_one_with_dropout(accum):
    """Under jit a draw is of the whole batch, so it is the same however the batch is split."""
    tx = optax.sgd(0.2, momentum=0.9)
    step = make_train_step(make_loss(rate=0.5), tx, accum=accum)
    ends = []
    for devices in (1, 8):
        data = Resident(make_source(53), 16, seed=3)
        placement = Placement.over({"data": devices})
        (end,) = fit(step, make_state(tx), data, until=6, every=[6], placement=placement)
        assert end.state.step.sharding.device_set == set(jax.devices()[:devices])
        losses = [m["loss"].compute() for _, m in end.metrics]
        ends.append((to_numpy(end.state), np.array(losses)))
    assert_close(ends[1], ends[0])
