"""Augmentations against Pillow, SciPy and scikit-image, and how their draws are distributed.

What was drawn is read off the result: a ramp shows where its pixels came from, and two greys show
a brightness and a contrast. So the tests know nothing of how keys are split.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import ndimage, stats
from skimage import transform

from jaxdl.data import images as im

KEY = jax.random.key(7)
LUMA = np.array([0.299, 0.587, 0.114])


def random_images(*shape):
    return np.random.default_rng(sum(shape)).random(shape, np.float32)


def run(augment, x, *args, **kwargs):
    return np.asarray(jax.jit(lambda key, x: augment(key, x, *args, **kwargs))(KEY, jnp.asarray(x)))


def ramps(b, h, w):
    """Images of three channels: each pixel's own column and row, and 1 to mark the inside."""
    row, column = np.mgrid[:h, :w].astype(np.float32)
    return np.tile(np.stack([column, row, np.ones_like(row)], axis=-1), (b, 1, 1, 1))


def assert_uniform(draws, low, high):
    assert stats.kstest(draws, stats.uniform(low, high - low).cdf).pvalue > 0.01


def assert_fair(coins):
    assert stats.binomtest(int(np.sum(coins)), len(coins)).pvalue > 0.01


def pillow(image, method, *args):
    return np.asarray(getattr(Image.fromarray(image), method)(*args))


def jittered(image, steps):
    """States jitter in NumPy: `steps` are (name, factor), in their order."""
    for name, factor in steps:
        grey = image @ LUMA if image.shape[-1] == 3 else image
        base = grey.mean() if name == "contrast" else 0
        image = np.clip(base + factor * (image - base), 0, 1)
    return image


def jitter_factors(b, **spreads):
    """Reads the factors off two greys, which no factor of these sizes clips."""
    greys = np.tile(np.float32([0.45, 0.55]).reshape(1, 1, 2, 1), (b, 1, 1, 1))
    low, high = run(im.jitter, greys, **spreads)[:, 0, :, 0].T
    brightness = low + high  # the mean grey of the input is 1/2
    return brightness, (high - low) / 0.1 / brightness


# Agreement with the references


def test_to_float_spans_0_to_1():
    values = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1)
    got = im.to_float(jnp.asarray(values))
    np.testing.assert_allclose(got, values / np.float32(255), rtol=1e-6)
    assert got.max() == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [((28, 28), (48, 48)), ((48, 48), (20, 20)), ((31, 44), (57, 13)), ((8, 9), (48, 5))],
)
def test_resize_is_pillows(before, after):
    x = random_images(2, *before, 3)
    got = im.resize(jnp.asarray(x), after)
    assert got.shape == (2, *after, 3)
    for i, c in np.ndindex(2, 3):
        want = pillow(x[i, :, :, c], "resize", after[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_allclose(got[i, :, :, c], want, atol=1e-5)


@pytest.mark.parametrize(("h", "w"), [(48, 48), (47, 47), (31, 44), (44, 31), (8, 9)])
def test_rotation_is_pillows_pixel_for_pixel(h, w):
    """The angle's sine is float32 here and float64 in Pillow: only a near tie may differ."""
    angles = np.float32([*range(-180, 181, 15), *np.random.default_rng(h).uniform(-180, 180, 150)])
    x = random_images(len(angles), h, w, 2)
    got = np.asarray(jax.jit(im.rotate_by)(x, angles))
    differs = np.zeros((len(angles), h, w), bool)
    for i, angle in enumerate(angles):
        for c in range(2):
            want = pillow(x[i, ..., c], "rotate", float(angle), Image.Resampling.NEAREST)
            differs[i] |= got[i, ..., c] != want
    cos, sin = (f(np.radians(angles, dtype=np.float64))[:, None, None] for f in (np.cos, np.sin))
    row, column = np.arange(h)[:, None] - (h - 1) / 2, np.arange(w) - (w - 1) / 2
    source = np.stack([cos * column - sin * row + w / 2, sin * column + cos * row + h / 2])
    to_border = np.abs(source - np.round(source)).min(0)
    assert (to_border[differs] < 1e-3).all()
    assert differs.mean() < 2e-5


def test_rotation_turns_counter_clockwise():
    x = random_images(2, 5, 5, 3)
    got = jax.jit(im.rotate_by)(x, np.float32([90, -90]))
    np.testing.assert_array_equal(got[0], np.rot90(x[0]))
    np.testing.assert_array_equal(got[1], np.rot90(x[1], -1))


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_is_its_numpy_statement_in_either_order(channels):
    spreads = {"brightness": 0.5, "contrast": 0.7}
    x = random_images(40, 6, 7, channels)
    got = run(im.jitter, x, **spreads)
    orders = []
    for image, result, *factors in zip(x, got, *jitter_factors(40, **spreads), strict=True):
        steps = list(zip(spreads, factors, strict=True))
        wants = [jittered(image, steps), jittered(image, steps[::-1])]
        errors = [np.abs(result - want).max() for want in wants]
        assert min(errors) < 1e-5
        orders += [np.argmin(errors)] if max(errors) > 1e-3 else []
    assert 0 < np.mean(orders) < 1


def test_jitter_is_pillows_within_its_rounding():
    x = (random_images(5, 6, 7, 3) * 255).astype(np.uint8)
    for name, enhance in (
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
    ):
        spreads = {"brightness": 0.0, "contrast": 0.0, name: 0.6}
        factors = dict(zip(("brightness", "contrast"), jitter_factors(5, **spreads), strict=True))
        got = run(im.jitter, np.float32(x / 255), **spreads) * 255
        for image, result, factor in zip(x, got, factors[name], strict=True):
            want = np.asarray(enhance(Image.fromarray(image)).enhance(float(factor)), float)
            assert np.abs(result - want).max() < 1.5


def test_the_reference_recipe():
    x = (random_images(4, 28, 28, 1) * 255).astype(np.uint8)
    angles, spreads = np.float32([-9.5, -2.25, 4.125, 10]), {"brightness": 0.2, "contrast": 0.2}
    resized = im.resize(im.to_float(jnp.asarray(x)), (48, 48))
    turned = jax.jit(im.rotate_by)(resized, angles)
    grey = jnp.asarray(run(im.jitter, turned, **spreads))
    got = im.normalise(im.to_channels(grey, 3), 0.1307, 0.3081)
    assert got.shape == (4, 48, 48, 3)
    for i, factors in enumerate(zip(*jitter_factors(4, **spreads), strict=True)):
        want = pillow(np.float32(x[i, ..., 0] / 255), "resize", (48, 48), Image.Resampling.BILINEAR)
        want = pillow(want, "rotate", float(angles[i]), Image.Resampling.NEAREST)[..., None]
        steps = list(zip(spreads, factors, strict=True))
        wants = [(jittered(want, s) - 0.1307) / 0.3081 for s in (steps, steps[::-1])]
        assert min(np.abs(got[i] - want).max() for want in wants) < 1e-4


def test_sample_is_scipys_with_zeros_around():
    x, rng = random_images(3, 6, 7, 2), np.random.default_rng(0)
    y, z = rng.uniform(-2, 8, (2, 3, 5, 4)).astype(np.float32)
    got = jax.jit(im.sample)(x, y, z)
    for i, c in np.ndindex(3, 2):
        want = ndimage.map_coordinates(x[i, ..., c], [y[i], z[i]], order=1, mode="grid-constant")
        np.testing.assert_allclose(got[i, ..., c], want, atol=1e-5)


def affine_maps(result):
    """Reads off each image its map from output (x, y, 1) to input (x, y): [b, 2, 3]."""
    row, column = np.mgrid[: result.shape[1], : result.shape[2]]
    maps = []
    for ramp in result:
        inside = np.abs(ramp[..., 2] - 1) < 1e-5
        at = np.stack([column[inside], row[inside], np.ones(inside.sum())], axis=-1)
        maps.append(np.linalg.lstsq(at, ramp[inside][:, :2], rcond=None)[0].T)
    return np.stack(maps)


def test_affine_is_scikit_images_warp():
    x = np.concatenate([ramps(6, 20, 23), random_images(6, 20, 23, 1)], axis=-1)
    got = run(im.affine, x, degrees=20.0, translate=0.1, scale=(0.8, 1.3), shear=9.0)
    for image, result, source in zip(x, got, affine_maps(got), strict=True):
        want = transform.warp(image[..., 3], np.vstack([source, [0, 0, 1]]), order=1)
        np.testing.assert_allclose(result[..., 3], want, atol=2e-3)


def test_elastic_displaces_by_a_smoothed_field():
    alpha, sigma, h, w = 20.0, 2.0, 44, 40
    x = np.concatenate([ramps(60, h, w), random_images(60, h, w, 1)], axis=-1)
    got = run(im.elastic, x, alpha=alpha, sigma=sigma)[:, 8:-8, 8:-8]
    column, row, _, image = np.moveaxis(got, -1, 0)
    want = ndimage.map_coordinates(x[0, ..., 3], [row[0], column[0]], order=1)
    np.testing.assert_allclose(image[0], want, atol=1e-4)
    for field in (column - np.arange(w)[8:-8], row - np.arange(h)[8:-8, None]):
        # A Gaussian's square sums to 1 / (2 sigma sqrt(pi)) along each axis; U's variance is 1/3.
        deviation = alpha / np.sqrt(3) / (2 * sigma * np.sqrt(np.pi))
        np.testing.assert_allclose(field.std(), deviation, rtol=0.03)
        neighbours = (field[:, 1:] * field[:, :-1]).mean() / np.square(field).mean()
        np.testing.assert_allclose(neighbours, np.exp(-1 / (4 * sigma**2)), rtol=0.02)


# What is drawn


def test_flip_mirrors_half_of_the_images():
    x = random_images(1000, 2, 3, 1)
    got = run(im.flip, x)
    mirrored = (got == x[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (got == x).all((1, 2, 3))).all()
    assert_fair(mirrored)


def test_crops_are_windows_of_the_padded_image_at_uniform_places():
    h, w, padding = 5, 4, 2
    x = np.tile(random_images(1, h, w, 2), (1500, 1, 1, 1))
    got = run(im.pad_and_crop, x, padding)
    padded = np.pad(x[0], ((padding,) * 2, (padding,) * 2, (0, 0)))
    counts = [
        (got == padded[i : i + h, j : j + w]).all((1, 2, 3)).sum()
        for i, j in np.ndindex(2 * padding + 1, 2 * padding + 1)
    ]
    assert sum(counts) == 1500
    assert stats.chisquare(counts).pvalue > 0.01


def test_rotation_angles_are_uniform():
    maps = affine_maps(run(im.rotate, ramps(800, 32, 35), 30.0))
    assert_uniform(np.degrees(np.arctan2(maps[:, 1, 0], maps[:, 0, 0])), -30, 30)


def test_jitter_factors_are_uniform_and_its_order_a_fair_coin():
    spreads = {"brightness": 0.2, "contrast": 0.5}
    for factors, spread in zip(jitter_factors(1000, **spreads), (0.2, 0.5), strict=True):
        assert_uniform(factors, 1 - spread, 1 + spread)
    # Where a step clips, the other order gives another result.
    x = np.tile(np.float32([0.5, 1.0]).reshape(1, 1, 2, 1), (1000, 1, 1, 1))
    errors = []
    for image, result, *factors in zip(
        x, run(im.jitter, x, **spreads), *jitter_factors(1000, **spreads), strict=True
    ):
        steps = list(zip(spreads, factors, strict=True))
        errors += [[np.abs(result - jittered(image, s)).max() for s in (steps, steps[::-1])]]
    told_apart = np.abs(np.diff(errors)[:, 0]) > 1e-3
    assert told_apart.sum() > 200
    assert_fair(np.argmin(errors, axis=1)[told_apart])


def test_affine_draws_are_uniform():
    h, w = 19, 28
    x = ramps(800, h, w)
    ranges = {"degrees": 30.0, "translate": 0.1, "scale": (0.8, 1.25), "shear": 15.0}
    maps = affine_maps(run(im.affine, x, **ranges))
    forward = np.linalg.inv(maps[:, :, :2])
    scale = np.sqrt(np.linalg.det(forward))
    assert_uniform(scale, 0.8, 1.25)
    # y runs downwards: a counter-clockwise turn takes (1, 0) to (cos, -sin).
    angle = -np.arctan2(forward[:, 1, 0], forward[:, 0, 0])
    assert_uniform(np.degrees(angle), -30, 30)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    sheared = np.einsum("ijb,bik->bjk", turn, forward) / scale[:, None, None]
    np.testing.assert_allclose(sheared[:, 1, 0], 0, atol=1e-3)
    assert_uniform(np.degrees(np.arctan(sheared[:, 0, 1])), -15, 15)
    centre = np.array([(w - 1) / 2, (h - 1) / 2])
    moved = np.einsum("bij,bj->bi", forward, centre - maps[:, :, 2]) - centre
    assert_uniform(moved[:, 0], -0.1 * w, 0.1 * w)
    assert_uniform(moved[:, 1], -0.1 * h, 0.1 * h)


def test_erase_hides_one_rectangle_of_the_stated_sizes():
    b, h, w = 1000, 40, 48
    x = 1 + random_images(b, h, w, 1)
    kept = run(im.erase, x, area=(0.1, 0.3), ratio=(0.5, 2.0), probability=0.5)
    hidden = kept[..., 0] == 0
    np.testing.assert_array_equal(np.where(hidden, 0, x[..., 0]), kept[..., 0])
    rows, columns = hidden.any(2), hidden.any(1)
    np.testing.assert_array_equal(hidden, rows[:, :, None] & columns[:, None])
    erased = rows.any(1)
    assert_fair(erased)
    for side in (rows, columns):
        assert (np.abs(np.diff(side, prepend=0, append=0)).sum(1)[erased] == 2).all()
    height, width = rows.sum(1)[erased], columns.sum(1)[erased]
    assert_uniform(height * width / (h * w), 0.1, 0.3)
    assert_uniform(np.log(height / width), -np.log(2), np.log(2))
    assert_uniform((rows.argmax(1)[erased] + 0.5) / (h - height + 1), 0, 1)
