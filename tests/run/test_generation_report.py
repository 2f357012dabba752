"""What is measured of samples: distances by their formulas, and what a perfect generator gets."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from experiments.image_generation import PRESETS
from jaxdl.models import ReferenceCNN, UNet
from jaxdl.run.generation_report import (
    PART,
    Real,
    frechet,
    neighbours,
    report_samples,
    spread,
    trained_on,
)
from jaxdl.run.generator import Generator, Sampling
from jaxdl.run.judge import Judge, Seen
from tests.run.generators import Pixels

RNG = np.random.default_rng(0)


def test_the_frechet_distance_of_normal_distributions_that_share_their_axes():
    # Then it is |difference of means|^2 + |difference of standard deviations|^2.
    turn, _ = np.linalg.qr(RNG.normal(size=(3, 3)))
    unit = RNG.normal(size=(500, 3))
    unit = (unit - unit.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(unit.T, ddof=0))).T
    a, b = (unit * std + mean for std, mean in (([1, 2, 3], [0, 0, 0]), ([2, 2, 1], [1, 0, 2])))
    assert frechet(a @ turn, b @ turn) == pytest.approx((1 + 0 + 4) + (1 + 0 + 4), rel=1e-6)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-6)
    assert frechet(a, a[::-1]) == pytest.approx(0, abs=1e-6)


def test_the_frechet_distance_is_that_of_the_square_root_of_the_product():
    from scipy.linalg import sqrtm

    a, b = RNG.normal(size=(40, 4)), RNG.normal(size=(30, 4)) @ RNG.normal(size=(4, 4)) + 1
    of_a, of_b = (np.cov(x.T, ddof=0) for x in (a, b))
    gap = a.mean(0) - b.mean(0)
    expected = gap @ gap + np.trace(of_a + of_b - 2 * np.real(sqrtm(of_a @ of_b)))
    assert frechet(a, b) == pytest.approx(expected, rel=1e-6)
    # With fewer vectors than axes the covariances are singular, and it is still a number.
    assert 0 < frechet(RNG.normal(size=(3, 9)), RNG.normal(size=(5, 9))) < np.inf


def test_the_nearest_of_others_is_found_by_looking_at_each():
    a, b = (RNG.normal(size=(n, 2, 3, 1)).astype(np.float32) for n in (300, 11))
    distances = np.sqrt(((a[:, None] - b[None]) ** 2).sum((2, 3, 4)))
    nearest, far = neighbours(a, [b[:4], b[4:]])
    np.testing.assert_array_equal(nearest, b[distances.argmin(1)])
    np.testing.assert_allclose(far, distances.min(1), rtol=1e-4)
    np.testing.assert_array_equal(neighbours(b, [b[4:], b[:4]])[1], 0)


@pytest.mark.parametrize("flip", [False, True])
def test_what_training_has_seen_is_all_of_its_images_and_their_mirror_images(flip):
    config = PRESETS["digits"]
    config = dataclasses.replace(config, flip=flip, image_size=2)
    rng = np.random.default_rng(4)
    source = [
        {"image": rng.integers(0, 256, (2, 2, 1), np.uint8), "label": 0} for _ in range(PART + 3)
    ]
    parts = [*trained_on(config, source)]
    assert [len(part) for part in parts] == ([PART] * 2 + [3] * 2 if flip else [PART, 3])
    stored = np.stack([row["image"] for row in source]).astype(np.float32) / 255
    np.testing.assert_allclose(np.concatenate(parts[:: 1 + flip]), stored, atol=1e-6)
    if flip:
        np.testing.assert_allclose(np.concatenate(parts[1::2]), stored[:, :, ::-1], atol=1e-6)


def test_spread_is_of_each_group_about_its_own_mean():
    features = np.array([[1.0, 0], [3, 0], [10, 10], [10, 14], [10, 12]])
    seen = Seen(np.zeros((5, 2)), features)
    assert spread(seen, [0, 0, 1, 1, 1]) == pytest.approx(((1 + 1 + 4 + 4 + 0) / 5) ** 0.5)
    assert spread(seen, [0, 1, 2, 3, 4]) == 0


class Oracle(Judge):
    """Reads the class off the brightness of an image."""

    def look(self, images):
        classes = np.rint(images.mean((1, 2, 3)) * 3).astype(int)
        return Seen(np.eye(4)[classes], images.reshape(len(images), -1))


@dataclasses.dataclass(frozen=True)
class Fixed(Generator):
    """Has its samples ready."""

    images: Any = None

    def sample(self, labels, key, how):
        return np.broadcast_to(self.images, (len(labels), *self.shape))


def real(count, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 4
    images = labels[:, None, None, None] / 3 + rng.normal(size=(count, 4, 4, 1)) * 0.05
    return Real(images.astype(np.float32), labels)


@pytest.mark.parametrize("classes", [4, None])
def test_samples_like_test_images_get_what_these_get_and_copies_are_told(classes, tmp_path):
    train, test = real(80, 1), real(40, 2)
    results = {}
    fresh = {"fresh": real(40, 3).images, "copies": train.images[:40], "one": train.images[:1]}
    judge = Oracle(ReferenceCNN(classes=4), {})
    for name, images in fresh.items():
        generator = Fixed(UNet(1, classes=classes), {}, (4, 4, 1), "cosine", "v", images=images)
        drawn = {"how": Sampling(), "key": jax.random.key(0)}
        report = report_samples(
            generator, judge, train, test, originals=[train.images], figures=tmp_path,
            labelled=classes is not None, **drawn,
        )  # fmt: skip
        results[name] = report["test"]
        assert report["sampling"] == {"sampler": "dpm", "steps": 20, "guidance": 1.0}
    perfect, copies, one = results.values()
    assert ("conditional_accuracy" in perfect) == (classes is not None)
    assert perfect["judge_accuracy"] == 1
    assert perfect.get("conditional_accuracy", 1) == 1
    assert perfect["frechet"] == pytest.approx(perfect["frechet_floor"], rel=0.3)
    assert perfect["novelty"] == pytest.approx(1, abs=0.15)
    assert perfect["diversity"] == pytest.approx(1, abs=0.15)
    assert copies["novelty"] == pytest.approx(0, abs=1e-6)
    assert one["diversity"] < 1e-3
    assert one["frechet"] > 10 * perfect["frechet"]
    assert one.get("conditional_accuracy", 0.25) == 0.25
    assert (tmp_path / "neighbours.png").is_file()


def test_fid_is_the_same_distance_in_the_features_that_are_given(tmp_path):
    train, test = real(80, 1), real(40, 2)
    generator = Fixed(UNet(1, classes=4), {}, (4, 4, 1), "cosine", "v", images=real(40, 3).images)
    judge, drawn = Oracle(ReferenceCNN(classes=4), {}), {"how": Sampling()}
    drawn |= {"key": jax.random.key(0), "figures": tmp_path, "labelled": True}
    drawn |= {"originals": [train.images]}
    without = report_samples(generator, judge, train, test, **drawn)["test"]
    numbers = report_samples(generator, judge, train, test, inception=Pixels({}), **drawn)["test"]
    distances = {"fid": without["frechet"], "fid_floor": without["frechet_floor"]}
    assert numbers == without | distances
    assert distances["fid"] != distances["fid_floor"]
