"""Laws of the devices: they are told apart by their number alone, never by the numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxdl.data import Resident
from jaxdl.errors import UserError
from jaxdl.train import fit, make_train_step, optim
from jaxdl.train.sharding import Placement, _warn, make_mesh, parse_mesh
from jaxdl.train.state import leaf_name
from tests.train.tiny import assert_close, make_loss, make_source, make_state, to_numpy


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({"data": 1}, (1, 1, 1)),
        ({"data": 5}, (5, 1, 1)),
        ({"data": -1}, (8, 1, 1)),
        ({"data": 2, "fsdp": 3}, (2, 3, 1)),
        ({"tensor": 2, "fsdp": -1}, (1, 4, 2)),
    ],
)
def test_a_mesh_has_the_sizes_asked_for_over_the_first_devices(sizes, shape):
    mesh = make_mesh(sizes)
    assert mesh.devices.shape == shape
    assert mesh.axis_names == ("data", "fsdp", "tensor")
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


@pytest.mark.parametrize("sizes", [{"model": -1}, {"batch": 8}, {"data": 2, "Data": 4}])
def test_an_axis_that_there_is_not_is_refused(sizes):
    with pytest.raises(ValueError, match=r"no axis '(model|batch|Data)'; there are data, fsdp, t"):
        Placement.over(sizes)


def test_a_mesh_is_parsed():
    assert parse_mesh("data=4") == {"data": 4}
    assert parse_mesh(" data=-1 , tensor=2,fsdp=3") == {"data": -1, "tensor": 2, "fsdp": 3}


@pytest.mark.parametrize("text", ["", "data", "data=", "data=two", "data=1.5", "date=2", "4"])
def test_a_mesh_that_cannot_be_parsed_is_told_with_the_part_that_is_wrong(text):
    with pytest.raises(UserError, match=rf"--mesh {text}: '{text}' is not of the form AXIS=N"):
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


def abstract_state(tx):
    return jax.eval_shape(lambda: make_state(tx, ema=True))


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_what_belongs_to_a_parameter_is_split_as_it_is(name):
    """Whichever the optimiser, and whatever is around it: a schedule, a clipping, a partition."""
    tx = optim.clipped(optim.OPTIMIZERS[name](optim.cosine(0.1, steps=9), decay=0.1), 1.0)
    # A split that only the rule, and no other, would choose: by its shape it would stay whole.
    placement = Placement.over({"tensor": 5}, rules=(("inner/kernel$", P("tensor")),))
    state = abstract_state(tx)
    shardings = placement.shardings(state)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    leaves = jax.tree_util.tree_leaves_with_path(shardings)
    specs = {leaf_name(path): sharding.spec for path, sharding in leaves}
    kernels = {path: spec for path, spec in specs.items() if path.endswith("inner/kernel")}
    assert set(kernels.values()) == {P("tensor")}
    assert {path.split("/")[0] for path in kernels} == {"params", "ema", "opt_state"}
    assert {spec for path, spec in specs.items() if path not in kernels} == {P()}


def test_a_state_is_put_as_it_is_described():
    tx = optax.adam(0.1)
    placement = Placement.over({"data": 1, "fsdp": 7}, large=30)
    state = placement.put(make_state(tx, ema=True))
    described = placement.abstract(abstract_state(tx))
    jax.tree.map(lambda x, y: np.testing.assert_equal(x.sharding, y.sharding), state, described)
    kernel = state.opt_state[0].mu["inner"]["kernel"]
    assert [shard.data.shape for shard in kernel.addressable_shards] == [(5, 1)] * 7


def test_a_large_parameter_that_stays_whole_is_told_once(caplog):
    _warn.cache_clear()
    state = abstract_state(optax.sgd(0.1))
    for _ in range(2):
        Placement.over({"fsdp": 2}, large=20).shardings(state)
    told = [record.getMessage() for record in caplog.records]
    assert told == ["large parameters stay whole on every device: inner/kernel, outer/kernel"]
    caplog.clear()
    Placement.over({"data": 8}, large=20).shardings(state)  # is meant to be whole
    Placement.over({"fsdp": 7}, large=20).shardings(state)  # is not
    assert not caplog.records


@pytest.mark.parametrize("parallel", ["pmap", "shard_map"])
def test_a_mapped_step_is_for_the_data_axis_alone(parallel):
    assert Placement.over({"data": 2}, parallel=parallel).axis_name == "data"
    for mesh in ({"fsdp": 2}, {"data": 2, "tensor": 2}):
        with pytest.raises(UserError, match=f"--parallel {parallel} splits the batch alone"):
            Placement.over(mesh, parallel=parallel)
    with pytest.raises(ValueError, match="no way 'pmep'; there are jit, pmap, shard_map"):
        Placement.over({"data": 2}, parallel="pmep")


@pytest.mark.parametrize("parallel", ["jit", "pmap", "shard_map"])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_batch_is_put_as_it_is_described_in_every_way(parallel, stacked):
    placement = Placement.over({"data": 4}, parallel=parallel)
    rows = np.arange(3 * 12 * 2, dtype=np.int64).reshape(3, 12, 2)
    batch = {"x": rows if stacked else rows[0]}
    put = placement.split(batch, stacked=stacked)["x"]
    described = placement.abstract_split(batch, stacked=stacked)["x"]
    assert (put.shape, put.dtype, put.sharding) == (
        described.shape, described.dtype, described.sharding,
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(put).reshape(batch["x"].shape), batch["x"])
    # Each device holds its own rows, whichever the way.
    held = {shard.device.id: np.asarray(shard.data) for shard in put.addressable_shards}
    for number, device in enumerate(jax.devices()[:4]):
        mine = batch["x"][..., 3 * number : 3 * number + 3, :]
        np.testing.assert_array_equal(held[device.id].reshape(mine.shape), mine)
