"""Laws of windows and streams: what is read, what is counted, and where a row starts anew."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl.data import Streams, Windows
from jaxdl.data.pipeline import Pipeline
from jaxdl.data.text_pipeline import smallest
from jaxdl.errors import UserError

N, B, T = 103, 4, 6
TEXT = np.random.default_rng(0).integers(1, 50, N).astype(np.int32)
numbered = np.arange  # a text whose token at place p is p: what is read tells where it stood
quickly = settings(max_examples=80, deadline=None)


def assembled(way, step):
    return jax.jit(way.assemble)(dict(way.arrays), way.batch(step))


def looked_up(way, step):
    """What `assemble` is to give, in NumPy, which compiles nothing for each new shape."""
    batch = way.batch(step)
    positions = batch["start"][:, None] + np.arange(way.length)
    text = way.arrays["text"].astype(np.int32)
    last = len(text) - 1
    rows = {"tokens": text[positions.clip(0, last)], "targets": text[(positions + 1).clip(0, last)]}
    rows |= {"reset": batch["reset"]} if "reset" in batch else {}
    if "from" in batch:
        rows["mask"] = (batch["from"][:, None] <= positions) & (positions < batch["to"][:, None])
    return rows


@pytest.mark.parametrize("way", [Windows, Streams])
@pytest.mark.parametrize("seed", [None, 3])
def test_a_batch_is_tokens_and_what_follows_each(way, seed):
    pipeline = way(TEXT, B, length=T, seed=seed)
    assert isinstance(pipeline, Pipeline)
    shapes = {"tokens": (B, T), "targets": (B, T)}
    shapes |= {"mask": (B, T)} if seed is None else {}
    shapes |= {"reset": (B,)} if way is Streams else {}
    for step in range(len(pipeline)):
        batch, expected = assembled(pipeline, step), looked_up(pipeline, step)
        assert {name: x.shape for name, x in batch.items()} == shapes
        assert batch["tokens"].dtype == batch["targets"].dtype == np.int32
        assert batch.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(batch[name], array)
    assert pipeline.examples > B * (len(pipeline) - 1)


@given(n=st.integers(2, 60), b=st.integers(1, 9), t=st.integers(1, 9), data=st.data())
@pytest.mark.parametrize("way", [Windows, Streams])
@quickly
def test_every_prediction_is_evaluated_once_from_enough_context(way, n, b, t, data):
    context = data.draw(st.integers(0, t - 1 if way is Windows else 2 * t))
    pipeline = way(numbered(n), b, length=t, seed=None, context=context)
    counted = []
    read: dict[int, int] = {}  # of each row of a stream, the tokens since it started anew
    for step in range(len(pipeline)):
        batch = looked_up(pipeline, step)
        for row in range(b):
            fresh = way is Windows or batch["reset"][row]
            read[row] = 0 if fresh else read[row]
            columns = (batch[name][row] for name in ("tokens", "targets", "mask"))
            for token, target, here in zip(*columns, strict=True):
                if here:
                    assert target == token + 1
                    # Of all tokens before, it has seen `context` at least, or all there are.
                    assert read[row] >= min(context, token)
                    counted.append(target)
                read[row] += 1
    assert sorted(counted) == list(range(1, n))


@given(n=st.integers(2, 80), b=st.integers(1, 9), t=st.integers(1, 9), seed=st.integers(0, 99))
@quickly
def test_windows_of_an_epoch_do_not_overlap_and_cover_all_but_the_ends(n, b, t, seed):
    if n < 2 * t:
        with pytest.raises(UserError, match=f"windows of at most {n // 2}"):
            Windows(numbered(n), b, length=t, seed=seed)
        return
    pipeline = Windows(numbered(n), b, length=t, seed=seed)
    steps = -(-3 * pipeline.examples // b)
    chain = np.concatenate([pipeline.batch(step)["start"] for step in range(steps)])
    for epoch in range(3):
        starts = np.sort(chain[epoch * pipeline.examples : (epoch + 1) * pipeline.examples])
        assert starts[0] >= 0
        assert (np.diff(starts) == t).all()
        assert starts[-1] + t <= n - 1
        assert starts[0] + (n - 1 - t - starts[-1]) < 2 * t


def test_in_time_a_window_starts_at_every_token_and_orders_differ():
    pipeline = Windows(TEXT, B, length=T, seed=0)
    starts = np.concatenate([pipeline.batch(step)["start"] for step in range(60 * len(pipeline))])
    assert set(starts) == set(range(N - T))
    seeded = [Windows(TEXT, B, length=T, seed=seed) for seed in range(5)]
    assert len({pipeline.batch(0)["start"].tobytes() for pipeline in seeded}) == 5


@given(n=st.integers(2, 80), b=st.integers(1, 9), t=st.integers(1, 9), seed=st.integers(0, 99))
@quickly
def test_streams_end_to_end_are_the_text(n, b, t, seed):
    if (n - 1) // b < t:
        with pytest.raises(UserError, match="choose --batch-size"):
            Streams(numbered(n), b, length=t, seed=seed)
        return
    pipeline = Streams(numbered(n), b, length=t, seed=seed)
    for epoch in range(2):
        steps = range(epoch * len(pipeline), (epoch + 1) * len(pipeline))
        batches = [looked_up(pipeline, step) for step in steps]
        read = np.concatenate([batch["tokens"] for batch in batches], axis=1).ravel()
        assert (np.diff(read) == 1).all()  # one stream goes on where the one above it ends
        assert read[0] >= 0
        assert read[-1] <= n - 2
        assert n - 1 - len(read) < b * t
        assert all(batch["reset"].all() == (i == 0) for i, batch in enumerate(batches))
        assert all(batch["reset"].any() == (i == 0) for i, batch in enumerate(batches))


@pytest.mark.parametrize("way", [Windows, Streams])
@pytest.mark.parametrize("seed", [None, 5])
def test_shards_side_by_side_are_the_batch_and_order_of_asking_does_not_matter(way, seed):
    whole = way(TEXT, 6, length=T, seed=seed)
    shards = [way(TEXT, 6, length=T, seed=seed, shard=(i, 3)) for i in range(3)]
    for step in reversed(range(len(whole))):
        for name, array in whole.batch(step).items():
            parts = [shard.batch(step)[name] for shard in shards]
            np.testing.assert_array_equal(np.concatenate(parts), array)
    resumed = way(TEXT, 6, length=T, seed=seed).batches(2)
    np.testing.assert_array_equal(next(resumed)["start"], whole.batch(2)["start"])
    if seed is None:
        assert len(list(way(TEXT, 6, length=T, seed=None).batches())) == len(whole)
        with pytest.raises(IndexError):
            whole.batch(len(whole))
    with pytest.raises(IndexError):
        whole.batch(-1)


def test_the_tokens_are_kept_in_the_narrowest_type():
    for top, dtype in ((255, np.uint8), (256, np.uint16), (65_535, np.uint16), (65_536, np.int32)):
        tokens = np.array([1, top, 2], np.int32)
        assert smallest(tokens) is dtype
        pipeline = Windows(tokens, 1, length=2, seed=None)
        assert pipeline.arrays["text"].dtype == dtype
        assert assembled(pipeline, 0)["tokens"].tolist() == [[1, top]]


@pytest.mark.parametrize("way", [Windows, Streams])
def test_the_users_mistakes_are_told(way):
    for wrong in ({"length": 0}, {"length": 3, "context": -1}):
        with pytest.raises(UserError):
            way(TEXT, B, **{"seed": None, **wrong})
    with pytest.raises(UserError, match="predicts nothing"):
        way(TEXT[:1], B, length=T, seed=None)
    with pytest.raises(UserError, match="--batch-size that is a multiple of 3"):
        way(TEXT, 4, length=T, seed=0, shard=(0, 3))
    with pytest.raises(UserError, match="--batch-size must be at least 1"):
        way(TEXT, 0, length=T, seed=0)
    with pytest.raises(UserError, match="context of 6"):
        Windows(TEXT, B, length=T, seed=None, context=T)
