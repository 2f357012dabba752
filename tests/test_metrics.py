"""Metrics are monoids: no split of the data, and nothing under a mask, changes the number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from jaxdl import metrics
from jaxdl.metrics import Mean

SIZE = 23
RNG = np.random.default_rng(0)
# Eighths and small integers: their sums are exact in float32, so every split must agree exactly.
VALUES = jnp.asarray(RNG.integers(-80, 80, SIZE) / 8, jnp.float32)
WEIGHTS = jnp.asarray(RNG.integers(0, 4, SIZE), jnp.float32)
# Few places to cut at, so that few lengths are compiled.
cuts = st.lists(st.sampled_from([0, 1, 8, 9, 16, SIZE]), max_size=6).map(sorted)


def split_metrics(at):
    for start, stop in zip([0, *at], [*at, SIZE], strict=True):
        rows = slice(start, stop)
        yield {"a": Mean.of(VALUES[rows], WEIGHTS[rows]), "b": Mean.of(VALUES[rows])}


@settings(deadline=None, max_examples=25)
@given(cuts)
def test_any_split_gives_the_same_number(at):
    merged = None
    for part in split_metrics(at):
        merged = metrics.merge(merged, part)
    assert merged["a"].compute() == pytest.approx(np.average(VALUES, weights=WEIGHTS), rel=1e-6)
    assert merged["b"].compute() == pytest.approx(float(np.mean(VALUES)), rel=1e-6)


@settings(deadline=None, max_examples=25)
@given(cuts)
def test_merging_is_associative(at):
    parts = list(split_metrics([*at, SIZE, SIZE]))
    first, second, *rest = parts
    left = metrics.merge(metrics.merge(first, second), rest[0])
    right = metrics.merge(first, metrics.merge(second, rest[0]))
    for name in left:
        assert float(left[name].total) == float(right[name].total)
        assert float(left[name].count) == float(right[name].count)


def test_metrics_of_other_names_do_not_merge():
    one = {"loss": Mean.of(VALUES)}
    for other in ({}, {"accuracy": Mean.of(VALUES)}, {**one, "accuracy": Mean.of(VALUES)}):
        for a, b in ((one, other), (other, one)):
            with pytest.raises(ValueError, match="loss"):
                metrics.merge(a, b)


def test_to_host_sums_the_axis_of_steps():
    parts = [jax.tree.map(jnp.asarray, part) for part in split_metrics([4, 9])]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *parts)
    merged = metrics.to_host(stacked)
    assert merged["a"].compute() == pytest.approx(np.average(VALUES, weights=WEIGHTS), rel=1e-6)
    assert isinstance(merged["a"].total, float)


def test_to_host_sums_beyond_the_integers_of_float32():
    steps = Mean(np.full(3, 2**24, np.float32), np.float32([2**24, 1, 1]))
    assert metrics.to_host({"loss": steps})["loss"].count == 2**24 + 2


def test_nothing_counted_is_nan():
    assert np.isnan(Mean.of(VALUES, jnp.zeros(SIZE)).compute())


@pytest.mark.parametrize("shape", [(5,), (3, 1), (1, 5), (), (5, 3)])
def test_a_mask_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match="mask has shape"):
        Mean.of(jnp.ones((3, 5)), jnp.ones(shape))


@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.float32, jnp.int32])
@pytest.mark.parametrize("junk", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_masked_may_be_anything(junk, dtype):
    mask = jnp.array([1, 0, 1, 0], dtype)
    values = jnp.array([2.0, junk, 5.0, junk])
    total, gradient = jax.value_and_grad(lambda values: Mean.of(values, mask).total)(values)
    assert total == 2 + 5
    np.testing.assert_array_equal(gradient, mask.astype(jnp.float32))


def test_weights_count_by_their_size_and_sign():
    values, weights = jnp.array([2.0, 4.0, 8.0]), jnp.array([0.5, -1.0, 2.0])
    got = Mean.of(values, weights)
    assert got.total == (values * weights).sum()
    assert got.count == weights.sum()


def test_means_pass_through_jit_and_scan():
    def step(carry, x):
        return carry + Mean.of(x), None

    total, _ = jax.lax.scan(step, Mean(jnp.float32(0), jnp.float32(0)), VALUES[:22].reshape(11, 2))
    assert total.compute() == jax.jit(Mean.of)(VALUES[:22]).compute()


def test_correct_takes_the_first_of_a_tie():
    logits = jnp.array([[1.0, 3.0, 3.0], [1.0, 3.0, 3.0], [5.0, 3.0, 0.0]])
    np.testing.assert_array_equal(
        metrics.correct(logits, jnp.array([1, 2, 0])), [True, False, True]
    )


def test_confusion_matrix_is_scikit_learns():
    labels, predictions = RNG.integers(0, 4, (2, 50))
    want = confusion_matrix(labels, predictions, labels=range(6))
    np.testing.assert_array_equal(metrics.confusion_matrix(labels, predictions, 6), want)
    assert metrics.confusion_matrix(labels[:0], predictions[:0], 3).sum() == 0


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, -1], [0, 1], "labels must lie"),
        ([0, 1], [2, 3], "predictions must lie"),
        ([[0], [1]], [0, 1], "predictions$"),
    ],
)
def test_confusion_matrix_refuses_what_does_not_fit(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        metrics.confusion_matrix(np.array(labels), np.array(predictions), 3)
