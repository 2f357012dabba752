"""The features of images that are looked at some at a time, as files keep them."""

import numpy as np
import pytest

from jaxdl.run import inception
from jaxdl.run.inception import InceptionFeatures, stored

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("count", [1, 4, 11])
def test_features_are_of_each_image_in_its_place_and_one_program_does(count, monkeypatch):
    shapes = set()

    def pixels(params, images):
        shapes.add(images.shape)
        return images.reshape(len(images), -1) + params["offset"]

    monkeypatch.setattr(inception, "AT_ONCE", 4)
    monkeypatch.setattr(inception, "_features", pixels)
    images = RNG.uniform(size=(count, 2, 3, 1)).astype(np.float32)
    features = InceptionFeatures({"offset": np.float32(2)})(images)
    np.testing.assert_allclose(features, stored(images).reshape(count, -1) + 2, rtol=1e-6)
    assert shapes == {(4, 2, 3, 1)}


def test_images_are_rounded_as_files_keep_them():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    images = levels.astype(np.float32) / 255
    np.testing.assert_array_equal(stored(images), images)
    np.testing.assert_allclose(stored(images + np.float32(0.4 / 255))[0, :15], images[0, :15])
    assert stored(images * 3 - 1).min() == 0
    assert stored(images * 3 - 1).max() == 1
