"""Laws of the checkpoints: what comes back is what was saved, bit for bit, or it is told."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxdl.errors import UserError
from jaxdl.train import checkpoint
from jaxdl.train.checkpoint import Checkpoints
from jaxdl.train.checksum import checksums
from jaxdl.train.sharding import Placement
from tests.train.tiny import assert_same, make_state

# Where the read of one array has failed, Orbax closes its loop on those of the others, whose ends
# TensorStore then reports to nobody.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)

PROGRESS = {"seconds": 1.5, "totals": {"loss": [2.5, 3.0]}}


@functools.cache
def state_at(step, *, rows=64, ema=True):
    """Makes a state whose numbers tell its step, with leaves of several types and ranks."""
    state = make_state(optax.adam(0.1), ema=ema)
    noise = jax.random.normal(jax.random.key(step), (rows, 32))  # does not compress
    half = jnp.full((2, 3), step, jnp.bfloat16)
    params = state.params | {"noise": noise, "half": half, "step": jnp.float32(step)}
    return state.replace(step=jnp.int32(step), params=params)


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints")
    yield made
    made.close()


def save(checkpoints, *steps, **options):
    for step in steps:
        checkpoints.save(step, state_at(step, **options), PROGRESS | {"at": step})


def restore(checkpoints, like=None, **options):
    """Restores by an abstract template: (state, progress, what was told)."""
    told = []
    like = state_at(0) if like is None else like
    template = jax.eval_shape(lambda: like)
    where = Placement.over({"data": 1}).replicated
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), template
    )
    state, progress = checkpoints.restore(template, tell=told.append, **options)
    return state, progress, told


@pytest.mark.parametrize("ema", [True, False])
def test_what_was_saved_comes_back_bit_for_bit(checkpoints, ema):
    save(checkpoints, 3, ema=ema)
    state, progress, told = restore(checkpoints, state_at(0, ema=ema))
    assert_same(state, state_at(3, ema=ema))
    kinds = [[leaf.dtype for leaf in jax.tree.leaves(s)] for s in (state, state_at(3, ema=ema))]
    assert kinds[0] == kinds[1]
    assert jax.random.uniform(state.key) == jax.random.uniform(state_at(3).key)
    assert (progress, told) == (PROGRESS | {"at": 3}, [])


def test_another_opening_of_the_folder_finds_the_newest_and_any_other(checkpoints):
    save(checkpoints, 3, 12)
    reader = Checkpoints(checkpoints.directory, read_only=True)
    assert reader.steps == [3, 12]
    assert_same(restore(reader)[0], state_at(12))
    assert_same(restore(reader, step=3)[0], state_at(3))


def test_an_empty_folder_has_nothing_to_restore(checkpoints):
    assert checkpoints.restore(state_at(0)) is None


def test_a_step_is_saved_once(checkpoints):
    save(checkpoints, 3)
    checkpoints.save(3, state_at(4), {"at": 4})
    assert restore(checkpoints)[1]["at"] == 3


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_the_latest_and_the_best_are_kept_though_the_metric_worsens(tmp_path, mode, sign):
    checkpoints = Checkpoints(tmp_path, keep=2, best=("score", mode))
    for step in range(1, 6):
        checkpoints.save(step, state_at(step), PROGRESS, {"score": -1.0 * sign * step})
    assert checkpoints.steps == [1, 4, 5]
    checkpoints.save(6, state_at(6), PROGRESS)  # not evaluated
    assert checkpoints.steps == [1, 5, 6]
    checkpoints.save(7, state_at(7), PROGRESS, {"score": 1.0 * sign})
    checkpoints.save(8, state_at(8), PROGRESS, {"score": 0.0})
    checkpoints.save(9, state_at(9), PROGRESS, {"score": 0.0})
    assert checkpoints.steps == [7, 8, 9]
    checkpoints.close()


@pytest.mark.parametrize(("mode", "bad"), [("min", float("nan")), ("max", float("inf"))])
def test_no_metric_that_is_not_finite_is_the_best(tmp_path, mode, bad):
    checkpoints = Checkpoints(tmp_path, keep=1, best=("score", mode))
    for step, score in enumerate([bad, 0.5, bad], 1):
        checkpoints.save(step, state_at(step), PROGRESS, {"score": score})
    assert checkpoints.steps == [2, 3]
    checkpoints.close()


def test_the_latest_milestones_are_kept_whatever_is_saved_between_them(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, milestone=lambda step: step % 10 == 0)
    save(checkpoints, 10, 13, 20, 23, 27, 30, 33, 37)
    assert checkpoints.steps == [20, 30, 33, 37]
    save(checkpoints, 40, 50)
    assert checkpoints.steps == [40, 50]
    checkpoints.close()


def without(params, name):
    return {key: value for key, value in params.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p | {"noise": jnp.zeros((32, 64))}, r"params/noise is float32\(64, 32\) there"),
        (lambda p: p | {"half": jnp.zeros((2, 3))}, r"params/half is bfloat16\(2, 3\) there and f"),
        (lambda p: without(p, "step"), "params/step is float32.* there and absent in this run"),
        (lambda p: p | {"new": jnp.zeros(2)}, "params/new is absent there and float32"),
    ],
)
def test_a_state_of_another_model_is_told_by_the_leaf_that_differs(checkpoints, change, message):
    save(checkpoints, 3)
    other = state_at(0)
    other = other.replace(params=change(other.params))
    with pytest.raises(UserError, match=f"the newest, 3: {message}"):
        restore(checkpoints, other)


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder):
    file = largest_file(folder)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(folder):
    file = largest_file(folder)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


def lose_the_arrays_metadata(folder):
    (folder / "state" / "_METADATA").unlink()


def lose_the_record(folder):
    shutil.rmtree(folder / "record")


def lose_all(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = [truncate, flip_a_bit, lose_the_arrays_metadata, lose_the_record, lose_all]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("set_aside", [True, False])
def test_a_damaged_newest_is_told_and_the_one_before_is_used(tmp_path, damage, set_aside):
    before = Checkpoints(tmp_path)
    save(before, 3, 12)
    before.close()
    damage(tmp_path / "12")
    checkpoints = Checkpoints(tmp_path)
    state, progress, told = restore(checkpoints, set_aside=set_aside)
    assert_same(state, state_at(3))
    assert progress["at"] == 3
    assert len(told) == 1
    assert "checkpoint 12 is not usable" in told[0]
    assert "going back to 3" in told[0]
    assert (tmp_path / "12.unusable").exists() == set_aside
    assert (tmp_path / "12").exists() != set_aside
    if set_aside:
        save(checkpoints, 12)
        assert_same(restore(checkpoints)[0], state_at(12))
    checkpoints.close()


def test_a_foreign_newest_is_set_aside_and_smaller_steps_are_saved_after_it(checkpoints):
    save(checkpoints, 5)
    save(checkpoints, 100, rows=48)
    state, _, told = restore(checkpoints, set_aside=True)
    assert_same(state, state_at(5))
    assert "params/noise" in told[0]
    save(checkpoints, 6, 7)
    again = Checkpoints(checkpoints.directory)
    assert again.steps == [6, 7]
    assert_same(restore(again)[0], state_at(7))


def test_a_second_one_set_aside_leaves_the_first_where_it_is(checkpoints):
    for rows in (48, 40):
        save(checkpoints, *({5} - set(checkpoints.steps)))
        save(checkpoints, 100, rows=rows)
        assert_same(restore(checkpoints, set_aside=True)[0], state_at(5))
    assert len(list(checkpoints.directory.glob("100.unusable*"))) == 2


def test_where_none_can_be_used_the_user_is_told_and_nothing_is_moved(checkpoints):
    save(checkpoints, 5, 6, rows=48)
    with pytest.raises(UserError, match=r"no checkpoint in .*the newest, 6: params/noise"):
        restore(checkpoints, set_aside=True)
    assert checkpoints.steps == [5, 6]


@pytest.mark.parametrize(
    ("saved", "restored"),
    [
        ({"data": 8}, {"data": 1}),
        ({"fsdp": 8}, {"data": 1}),
        ({"fsdp": 8}, {"fsdp": 2}),
        ({"fsdp": 8}, {"data": 4}),
        ({"data": 2, "fsdp": 4}, {"data": 2}),
        ({"data": 1}, {"fsdp": 8}),
        ({"data": 8}, {"data": 2, "fsdp": 2}),
    ],
    ids=str,
)
def test_a_state_comes_back_onto_another_mesh(checkpoints, saved, restored):
    """From all sides of a split, as a run would: by an abstract template, and verified."""
    before, after = (Placement.over(sizes, large=64) for sizes in (saved, restored))
    checkpoints.save(3, before.put(state_at(3)), PROGRESS)
    template = after.abstract(jax.eval_shape(lambda: state_at(0)))
    state, _ = checkpoints.restore(template)
    assert_same(state, state_at(3))
    jax.tree.map(lambda x, y: np.testing.assert_equal(x.sharding, y.sharding), state, template)
    assert any(state.params["noise"].sharding.spec) == ("fsdp" in restored)
    assert jax.random.uniform(state.key) == jax.random.uniform(state_at(3).key)


def test_one_process_with_one_device_restores_what_eight_devices_saved(checkpoints):
    save_split = Placement.over({"fsdp": 8}, large=64).put
    checkpoints.save(3, save_split(state_at(3)), PROGRESS)
    code = f"""
import jax, numpy as np
from test_checkpoint import Checkpoints, Placement, assert_same, state_at
assert jax.device_count() == 1
template = Placement.over().abstract(jax.eval_shape(lambda: state_at(0)))
assert_same(Checkpoints({str(checkpoints.directory)!r}).restore(template)[0], state_at(3))
"""
    paths = os.pathsep.join(str(path) for path in Path(__file__).parents[:3])
    environment = os.environ | {"PYTHONPATH": paths, "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_split_array_that_is_not_the_one_saved_is_told(checkpoints, monkeypatch):
    placement = Placement.over({"data": 2, "fsdp": 4}, large=64)
    checkpoints.save(3, placement.put(state_at(3)), PROGRESS)
    wanted = state_at(12)
    wanted = wanted.replace(params=wanted.params | {"noise": state_at(3).params["noise"]})
    with monkeypatch.context() as lying:  # the record is of what should have been written
        sums = checksums(wanted.replace(key=jax.random.key_data(wanted.key)))
        lying.setattr(checkpoint, "checksums", lambda tree: sums)
        checkpoints.save(12, placement.put(state_at(12)), PROGRESS)
    state, _, told = restore(checkpoints)
    assert_same(state, state_at(3))
    assert told == [
        "checkpoint 12 is not usable (params/noise is damaged: its checksum differs):"
        " going back to 3"
    ]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("RESOURCE: No space left: write")]
)
def test_a_full_disk_is_told_and_leaves_the_checkpoints_before(checkpoints, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    save(checkpoints, 3)
    with monkeypatch.context() as full:
        full.setattr(ocp.JsonCheckpointHandler, "save", fail)
        full.setattr(ocp.JsonCheckpointHandler, "async_save", fail)
        with pytest.raises(UserError, match=r"no space left .*the ones before are kept"):
            save(checkpoints, 12)
    again = Checkpoints(checkpoints.directory)
    assert again.steps == [3]
    assert_same(restore(again)[0], state_at(3))
    save(again, 12)
    assert np.array_equal(restore(again)[0].params["step"], 12)
