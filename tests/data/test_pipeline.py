"""Laws of the pipelines: batch n depends only on (seed, n), and every example counts once."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl.data import ArraySource, Resident, Streaming, make_pipeline, pipeline
from jaxdl.data.order import Order, permutation
from jaxdl.errors import UserError

N, B = 11, 4  # B does not divide N


def small_source(n: int = N) -> ArraySource:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 3, 2, 1), dtype=np.uint8)
    return ArraySource({"image": images, "label": np.arange(n, dtype=np.int32)})


def assembled(way, step: int) -> dict[str, np.ndarray]:
    batch = jax.jit(way.assemble)(dict(way.arrays), dict(way.batch(step)))
    return {name: np.asarray(array) for name, array in batch.items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert a[name].dtype == b[name].dtype


class Watched:
    """A source that remembers what was read from it; at the top level, so that it pickles."""

    def __init__(self, n: int):
        self.n, self.read = n, []

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.read.append(i)
        return {"label": np.int32(i)}


class Worker:
    """A source that tells where it is read: whether JAX has started, and in which process."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        from jax._src import xla_bridge

        return {
            "pid": np.int64(os.getpid()),
            "jax": np.bool_(xla_bridge.backends_are_initialized()),
        }


class Broken:
    def __len__(self):
        return 8

    def __getitem__(self, i):
        raise UserError("cat.png: cannot be read as an image")


@given(n=st.integers(1, 30), batch=st.integers(1, 40), seed=st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_every_epoch_has_every_example_exactly_once(n, batch, seed):
    order = Order(examples=n, batch_size=batch, seed=seed)
    steps = -(-3 * n // batch)
    chain = np.concatenate([order.indices(step)[0] for step in range(steps)])
    assert len(chain) == steps * batch
    for epoch in range(3):
        here = chain[epoch * n : (epoch + 1) * n]
        assert sorted(here) == list(range(n))


def test_epochs_and_seeds_differ():
    orders = {
        permutation(50, seed=seed, epoch=epoch).tobytes() for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_the_permutation_is_the_ranks_of_the_raw_bits_of_philox():
    # Raw bits are what NumPy promises for ever; the key is (seed, epoch).
    bits = np.random.Philox(key=np.array([7, 3], np.uint64)).random_raw(20)
    expected = sorted(range(20), key=lambda i: int(bits[i]))
    assert permutation(20, seed=7, epoch=3).tolist() == expected


@given(
    n=st.integers(1, 30), local=st.integers(1, 5), shards=st.integers(1, 4), step=st.integers(0, 9)
)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("seed", [None, 5])
def test_shards_side_by_side_are_the_global_batch(n, local, shards, step, seed):
    whole = Order(examples=n, batch_size=local * shards, seed=seed)
    if seed is None:
        step %= len(whole)
    parts = [
        Order(examples=n, batch_size=local * shards, seed=seed, shard=(i, shards)).indices(step)
        for i in range(shards)
    ]
    index, mask = whole.indices(step)
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), index)
    if mask is not None:
        np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), mask)


@given(n=st.integers(1, 30), batch=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_masks_count_every_evaluation_example_exactly_once(n, batch):
    way = Resident({"label": np.arange(n)}, batch, seed=None)
    seen = [b["index"][b["mask"]] for b in way.batches()]
    assert len(seen) == len(way)
    assert np.concatenate(seen).tolist() == list(range(n))
    assert all(len(b["mask"]) == batch for b in way.batches())


@pytest.mark.parametrize("way", [Resident, Streaming])
@pytest.mark.parametrize("seed", [None, 0])
def test_a_batch_does_not_depend_on_what_was_read_before(way, seed):
    used = way(small_source(), B, seed=seed)
    for step in (2, 0, 1):
        assembled(used, step)
    assert_same(assembled(used, 2), assembled(way(small_source(), B, seed=seed), 2))


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
@pytest.mark.parametrize("batch_size", [4, 26])
def test_streaming_equals_resident(seed, shard, batch_size):
    resident = Resident(small_source(), batch_size, seed=seed, shard=shard)
    streaming = Streaming(small_source(), batch_size, seed=seed, shard=shard)
    assert len(resident) == len(streaming) == -(-N // batch_size)
    for step in range(len(resident) if seed is None else 6):
        assert_same(assembled(streaming, step), assembled(resident, step))


def test_assemble_takes_the_numbered_examples():
    source = small_source()
    way = Resident(source, B, seed=1)
    index = way.batch(1)["index"]
    np.testing.assert_array_equal(assembled(way, 1)["image"], source.arrays["image"][index])
    np.testing.assert_array_equal(assembled(way, 1)["label"], index)


@pytest.mark.parametrize("way", [Resident, Streaming])
@pytest.mark.parametrize(("seed", "start"), [(0, 0), (0, 5), (None, 0), (None, 2), (None, 3)])
def test_resuming_continues_where_the_run_was(way, seed, start):
    whole, resumed = (way(small_source(), B, seed=seed) for _ in range(2))
    with contextlib.closing(resumed.batches(start)) as batches:
        steps = range(start, len(whole)) if seed is None else range(start, start + 7)
        for step in steps:
            assert_same(next(batches), whole.batch(step))
        if seed is None:
            with pytest.raises(StopIteration):
                next(batches)


def test_streaming_reads_only_its_shard_and_nothing_before_the_start():
    way = Streaming(Watched(64), 8, seed=4, shard=(1, 2), prefetch=2)
    with contextlib.closing(way.batches(3)) as batches:
        for _ in range(2):
            next(batches)
    order = Order(examples=64, batch_size=8, seed=4, shard=(1, 2))
    reachable = {int(i) for step in range(3, 8) for i in order.indices(step)[0]}
    first = {int(i) for step in (3, 4) for i in order.indices(step)[0]}
    assert first <= set(way.source.read) <= reachable


@pytest.mark.parametrize("seed", [None, 6])
def test_worker_processes_give_the_same_batches(seed):
    way = Streaming(small_source(), B, seed=seed, workers=2, prefetch=1)
    argv = list(sys.argv)
    with contextlib.closing(way.batches(1)) as batches:
        for step in (1, 2):
            assert_same(next(batches), way.batch(step))
    assert sys.argv == argv


def test_workers_start_no_jax_backend_and_end_with_the_iterator():
    jax.devices()  # this process has one
    before = set(multiprocessing.active_children())
    way = Streaming(Worker(), 4, seed=0, workers=1, prefetch=1)
    with contextlib.closing(way.batches()) as batches:
        batch = next(batches)
    assert set(batch["pid"]) != {os.getpid()}
    assert not batch["jax"].any()
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_workers_do_not_survive_a_parent_that_was_killed():
    code = """
        import os, signal, test_pipeline
        way = test_pipeline.Streaming(test_pipeline.Worker(), 4, seed=0, workers=1, prefetch=1)
        batches = way.batches()
        print(next(batches)["pid"][0], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    pid = int(in_a_process(code).stdout)
    deadline = time.monotonic() + 20
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not lives(pid)


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # a zombie waits only to be counted


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_the_data_is_told_as_it_is(workers):
    way = Streaming(Broken(), 4, seed=0, workers=workers, prefetch=1)
    with contextlib.closing(way.batches()) as batches, pytest.raises(UserError, match=r"cat\.png"):
        next(batches)


def in_a_process(code: str) -> subprocess.CompletedProcess:
    path = f"{Path(__file__).parents[2]}{os.pathsep}{Path(__file__).parent}"
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_abandoned_batches_leave_no_thread_that_holds_up_the_end():
    code = """
        import test_pipeline
        way = test_pipeline.Streaming(test_pipeline.Watched(9), 2, seed=0)
        print(next(way.batches())["label"].shape)
    """
    done = in_a_process(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(2,)\n", "")


def test_make_pipeline_keeps_what_fits_on_the_device(monkeypatch):
    source = small_source()
    assert isinstance(make_pipeline(source, B, seed=0), Resident)
    assert isinstance(make_pipeline(source, B, seed=0, resident=False), Streaming)
    monkeypatch.setattr(pipeline, "RESIDENT_LIMIT", N * 10 - 1)  # 6 bytes of image, 4 of label
    assert isinstance(make_pipeline(source, B, seed=0), Streaming)
    monkeypatch.setattr(pipeline, "RESIDENT_LIMIT", N * 10)
    lazy = make_pipeline([source[i] for i in range(N)], B, seed=0)
    assert isinstance(lazy, Resident)
    assert_same(assembled(lazy, 3), assembled(Resident(source, B, seed=0), 3))


@pytest.mark.parametrize("way", [Resident, Streaming])
def test_the_users_mistakes_name_the_flag_that_mends_them(way):
    with pytest.raises(UserError, match="--batch-size that is a multiple of 3"):
        way(small_source(), 4, seed=0, shard=(0, 3))
    with pytest.raises(UserError, match="--batch-size must be at least 1"):
        way(small_source(), 0, seed=0)
    with pytest.raises(UserError, match="no examples"):
        way(small_source(0), 4, seed=0)


def test_there_is_no_batch_outside_the_one_pass_of_evaluation():
    for step in (-1, 3):
        with pytest.raises(IndexError):
            Resident(small_source(), B, seed=None).batch(step)


def test_threads_agree_on_an_order():
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(permutation(1000, seed=1, epoch=9)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({r.tobytes() for r in results}) == 1
