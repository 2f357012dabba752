"""Sources in memory: arrays, labels in range, and the bundled digits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxdl.data import ArraySource, ImageDataset, digits, load_into_memory, sources
from jaxdl.errors import UserError


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- sources in memory


def test_load_into_memory_equals_the_examples_one_by_one():
    examples = [{"image": pixels(2, 3, 1, seed=i), "label": np.int32(i)} for i in range(150)]
    seen = []
    loaded = load_into_memory(examples, progress=lambda done, total: seen.append((done, total)))
    assert len(loaded) == 150
    assert loaded.arrays["label"].dtype == np.int32
    for i, example in enumerate(examples):
        np.testing.assert_array_equal(loaded[i]["image"], example["image"])
        assert loaded[i]["label"] == i
    assert seen[-1] == (150, 150)
    assert load_into_memory(loaded) is loaded


@pytest.mark.parametrize(
    "odd",
    [
        {"image": np.zeros((1, 4, 3), np.uint8), "label": np.int32(1)},  # would be broadcast
        {"image": np.zeros((4, 4, 3), np.float32), "label": np.int32(1)},  # would be cut to uint8
        {"image": pixels(4, 4, 3)},  # would have any label
        {"image": pixels(4, 4, 3), "label": np.int32(1), "more": np.int32(1)},
    ],
    ids=["shape", "type", "less", "more"],
)
def test_an_example_unlike_the_first_is_named(odd):
    examples = [{"image": pixels(4, 4, 3), "label": np.int32(i)} for i in range(100)]
    told = r"example 70 has .*, the first \{'image': \(dtype\('uint8'\), \(4, 4, 3\)\), 'label'"
    with pytest.raises(ValueError, match=told):
        load_into_memory([*examples[:70], odd, *examples[71:]])


def test_arrays_of_different_lengths_are_no_source():
    with pytest.raises(ValueError, match="one length"):
        ArraySource({"image": pixels(3, 1, 1, 1), "label": np.arange(2)})


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_out_of_range_is_named(label):
    good = ArraySource({"label": np.array([0, 1, 0], np.int32)})
    bad = ArraySource({"label": np.array([0, 1, 1, label, label], np.int32)})
    with pytest.raises(UserError, match=rf"toy \(test\): example 3 has label {label}, .*\[0, 2\)"):
        ImageDataset(name="toy", classes=("a", "b"), train=good, test=bad)


# --- digits


def test_digits_are_sklearns_each_once_and_the_test_set_is_a_stratified_fifth():
    dataset = digits()
    assert len(dataset.train) + len(dataset.test) == 1797
    assert dataset.image_shape == (8, 8, 1)
    raw = load_digits()
    joined = {
        name: np.concatenate([dataset.train.arrays[name], dataset.test.arrays[name]])
        for name in ("image", "label")
    }
    assert joined["image"].dtype == np.uint8
    assert joined["label"].dtype == np.int32
    expected = np.column_stack([np.rint(raw.data * 255 / 16), raw.target])
    actual = np.column_stack([joined["image"].reshape(1797, 64), joined["label"]])
    np.testing.assert_array_equal(
        actual[np.lexsort(actual.T)], expected[np.lexsort(expected.T)].astype(np.uint8)
    )
    for label in range(10):
        held_out = (dataset.test.arrays["label"] == label).sum()
        assert abs(held_out - (raw.target == label).sum() / 5) < 1


def test_the_digits_held_out_are_the_third_of_every_five_of_a_class():
    raw = load_digits()
    seen, expected = [0] * 10, []
    for image, label in zip(raw.images, raw.target, strict=True):
        if seen[label] % 5 == 2:
            expected.append(image)
        seen[label] += 1
    test = digits().test.arrays["image"][..., 0]
    np.testing.assert_array_equal(test, np.rint(np.array(expected) * 255 / 16).astype(np.uint8))


def test_every_nth_is_stratified_and_takes_the_middle():
    labels = np.array([0, 1, 0, 0, 1, 0, 0, 1])
    chosen = sources.every_nth_of_each_class(labels, 3)
    assert np.flatnonzero(chosen).tolist() == [2, 4, 6]
