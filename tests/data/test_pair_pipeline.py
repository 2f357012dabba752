"""Laws of packed pairs: each counted once, order a function of the step, sides that match."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.data.pair_pipeline import (
    PackedPairs,
    encode_pairs,
    fitting,
    joint_bpe,
    longest,
    row_lengths,
)
from jaxdl.data.pairs import Pair, dates
from jaxdl.data.pipeline import Pipeline
from jaxdl.errors import UserError

N, LENGTHS = 37, (40, 24)


@pytest.fixture(scope="module")
def data():
    return dates(train=200, held_out=N)


@pytest.fixture(scope="module")
def tokenizer(data):
    return joint_bpe(data.train, size=300)


@pytest.fixture(scope="module")
def encoded(data, tokenizer):
    return encode_pairs(data.test, tokenizer)


@pytest.fixture(scope="module")
def make(encoded, tokenizer):
    def made(batch_size, **options):
        specials = tokenizer.specials
        return PackedPairs(encoded, batch_size, lengths=LENGTHS, specials=specials, **options)

    return made


def assembled(pipeline, step):
    batch = jax.tree.map(jnp.asarray, (dict(pipeline.arrays), pipeline.batch(step)))
    return jax.device_get(pipeline.assemble(*batch))


def unpacked(batch, tokenizer):
    """Reads the pairs of a batch back, as text, from what a network would see and what counts."""
    for row in range(len(batch["tokens"])):
        one = {name: array[row] for name, array in batch.items()}
        for segment in sorted({*one["segments"][one["mask"]]}):
            here, there = one["segments"] == segment, one["source_segments"] == segment
            read, predicted = one["tokens"][here], one["targets"][here]
            assert read[0] == tokenizer.specials["<s>"]
            assert predicted[-1] == one["source"][there][-1] == tokenizer.specials["</s>"]
            np.testing.assert_array_equal(read[1:], predicted[:-1])
            assert one["mask"][here].all()
            yield Pair(tokenizer.decode(one["source"][there]), tokenizer.decode(predicted))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_evaluation_counts_every_pair_once_at_any_batch_size(make, data, tokenizer, batch_size):
    pipeline = make(batch_size, seed=None)
    assert isinstance(pipeline, Pipeline)
    batches = [assembled(pipeline, step) for step in range(len(pipeline))]
    read = [pair for batch in batches for pair in unpacked(batch, tokenizer)]
    assert sorted(read) == sorted(data.test)
    assert not any((batch["mask"] & (batch["segments"] == 0)).any() for batch in batches)
    for batch in batches:  # one shape, of the mask too: one program serves all
        for name, array in batch.items():
            assert array.shape == (batch_size, LENGTHS["source" not in name])


def test_an_epoch_of_training_has_every_pair_once(make, data, tokenizer):
    pipeline = make(1, seed=4)
    for epoch in range(2):
        steps = range(epoch * len(pipeline), (epoch + 1) * len(pipeline))
        read = (unpacked(assembled(pipeline, step), tokenizer) for step in steps)
        assert sorted(itertools.chain(*read)) == sorted(data.test)


def test_a_batch_is_a_function_of_seed_and_step_and_of_nothing_else(make):
    whole, again = make(4, seed=1), make(4, seed=1)
    shards = [make(4, seed=1, shard=(i, 2)) for i in range(2)]
    other = make(4, seed=2)
    steps = range(2 * len(whole))
    for step in reversed(steps):
        expected = assembled(whole, step)
        parts = [assembled(shard, step) for shard in shards]
        for name, array in expected.items():
            np.testing.assert_array_equal(assembled(again, step)[name], array)
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), array)
    epochs = [assembled(whole, step)["tokens"].tobytes() for step in (0, len(whole))]
    assert epochs[0] != epochs[1]
    assert assembled(other, 0)["tokens"].tobytes() != epochs[0]


def test_rows_of_lengths_in_proportion_are_mostly_full_on_either_side(encoded, tokenizer):
    lengths = row_lengths(encoded, 64)
    assert max(lengths) == 64
    assert all(length % 8 == 0 for length in lengths)
    assert row_lengths(encoded, 8) == tuple(-(-n // 8) * 8 for n in longest(encoded))
    pipeline = PackedPairs(encoded, 4, lengths=lengths, specials=tokenizer.specials, seed=0)
    assert pipeline.pairs == N
    assert min(pipeline.filled.values()) > 0.7


def test_both_sides_are_written_with_one_vocabulary(data, tokenizer, encoded):
    assert tokenizer.specials == {"<pad>": 0, "<s>": 1, "</s>": 2}
    for pair, source, target in zip(data.test, *encoded, strict=True):
        assert tokenizer.decode(source) == pair.source
        assert tokenizer.decode(target) == pair.target
        assert min(*source, *target) > 2


def test_what_is_longer_than_a_row_is_left_out_of_training_and_told_in_evaluation(
    make, encoded, tokenizer
):
    length = int(np.median([len(source) for source in encoded.sources]))
    kept = fitting(encoded, length)
    assert 0 < len(kept.sources) < N
    assert max(longest(kept)) <= length < max(longest(encoded))
    options = {"lengths": (length, length), "specials": tokenizer.specials, "seed": None}
    assert PackedPairs(kept, 2, **options).pairs == len(kept.targets)
    with pytest.raises(UserError, match=f"--length of {max(longest(encoded))}"):
        PackedPairs(encoded, 2, **options)
