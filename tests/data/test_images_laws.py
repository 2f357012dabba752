"""The laws that every augmentation obeys, and the arguments that they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdl.data import images as im

KEY = jax.random.key(7)
AUGMENTATIONS = {
    "flip": im.flip,
    "pad_and_crop": lambda key, x: im.pad_and_crop(key, x, 3),
    "rotate": lambda key, x: im.rotate(key, x, 25.0),
    "jitter": lambda key, x: im.jitter(key, x, brightness=0.4, contrast=0.6),
    "affine": lambda key, x: im.affine(
        key, x, degrees=20.0, translate=0.1, scale=(0.8, 1.3), shear=9.0
    ),
    "elastic": lambda key, x: im.elastic(key, x, alpha=9.0, sigma=2.0),
    "erase": lambda key, x: im.erase(key, x, probability=1.0),
}
IDENTITIES = {
    "pad_and_crop": lambda key, x: im.pad_and_crop(key, x, 0),
    "rotate": lambda key, x: im.rotate(key, x, 0.0),
    "jitter": lambda key, x: im.jitter(key, x, brightness=0.0, contrast=0.0),
    "affine": im.affine,
    "elastic": lambda key, x: im.elastic(key, x, alpha=0.0, sigma=2.0),
    "erase": lambda key, x: im.erase(key, x, probability=0.0),
    "flip twice": lambda key, x: im.flip(key, im.flip(key, x)),
    "resize": lambda key, x: im.resize(x, x.shape[1:3]),
    "to_channels": lambda key, x: im.to_channels(x, x.shape[-1]),
}
COMPILED = {name: jax.jit(augment) for name, augment in AUGMENTATIONS.items()}
IMAGES = jax.random.uniform(jax.random.key(3), (4, 13, 11, 3))
every_augmentation = pytest.mark.parametrize("name", AUGMENTATIONS)


@every_augmentation
def test_the_key_alone_decides(name):
    augment = COMPILED[name]
    got = augment(KEY, IMAGES)
    assert got.shape == IMAGES.shape
    assert got.dtype == jnp.float32
    assert got.min() >= 0
    assert got.max() <= 1 + 1e-6
    np.testing.assert_array_equal(got, augment(KEY, IMAGES))
    others = [augment(jax.random.fold_in(KEY, i), IMAGES) for i in range(3)]
    assert any((other != got).any() for other in others)


@every_augmentation
def test_a_row_does_not_depend_on_the_other_rows(name):
    mixed = IMAGES.at[jnp.array([0, 1, 3])].set(jnp.nan)
    np.testing.assert_array_equal(COMPILED[name](KEY, mixed)[2], COMPILED[name](KEY, IMAGES)[2])


@every_augmentation
def test_rows_draw_apart(name):
    got = COMPILED[name](KEY, jnp.tile(IMAGES[:1], (20, 1, 1, 1)))
    assert len(np.unique(got, axis=0)) > 1


@every_augmentation
def test_jit_is_eager(name):
    compiled, eager = (a[name](KEY, IMAGES) for a in (COMPILED, AUGMENTATIONS))
    np.testing.assert_allclose(compiled, eager, atol=1e-5)


@pytest.mark.parametrize("augment", IDENTITIES.values(), ids=IDENTITIES)
def test_nothing_to_do_is_the_identity(augment):
    np.testing.assert_allclose(jax.jit(augment)(KEY, IMAGES), IMAGES, atol=1e-6)


def test_normalise_and_its_inverse():
    x, mean, std = np.asarray(IMAGES), [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    got = im.normalise(IMAGES, mean, std)
    np.testing.assert_allclose(got, (x - np.float32(mean)) / np.float32(std), rtol=1e-6)
    np.testing.assert_allclose(im.denormalise(got, mean, std), x, atol=1e-6)


def test_to_channels_repeats_grey():
    grey = IMAGES[..., :1]
    np.testing.assert_array_equal(im.to_channels(grey, 3), np.repeat(grey, 3, axis=-1))


def test_to_channels_mixes_colours_as_pillow_does():
    colours = np.random.default_rng(1).integers(0, 256, (2, 5, 4, 3), np.uint8)
    mixed = im.to_channels(im.to_float(jnp.asarray(colours)), 1)
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in colours])
    np.testing.assert_allclose(255 * mixed[..., 0], expected, atol=0.51)  # it rounds
    again = im.to_channels(im.to_channels(mixed, 3), 1)
    np.testing.assert_allclose(again, mixed, rtol=1e-6)


GREY, PAIR = jnp.zeros((2, 5, 4, 1)), jnp.zeros((3, 5, 4, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: im.to_float(GREY), "uint8"),
        (lambda: im.flip(KEY, GREY[0]), r"\[b, h, w, c\]"),
        (lambda: im.rotate(KEY, GREY.astype(jnp.uint8), 9.0), "float images"),
        (lambda: im.rotate(KEY, GREY, -1.0), "degrees"),
        (lambda: im.resize(GREY, (0, 3)), "size"),
        (lambda: im.pad_and_crop(KEY, GREY, -1), "padding"),
        (lambda: im.jitter(KEY, GREY, brightness=1.5, contrast=0.0), "brightness"),
        (lambda: im.jitter(KEY, GREY, brightness=0.0, contrast=-0.1), "contrast"),
        (lambda: im.jitter(KEY, PAIR, brightness=0.1, contrast=0.1), "1 or 3 channels"),
        (lambda: im.affine(KEY, GREY, degrees=181.0), "degrees"),
        (lambda: im.affine(KEY, GREY, translate=2.0), "translate"),
        (lambda: im.affine(KEY, GREY, scale=(1.2, 0.8)), "scale"),
        (lambda: im.affine(KEY, GREY, shear=90.0), "shear"),
        (lambda: im.elastic(KEY, GREY, alpha=1.0, sigma=0.0), "sigma"),
        (lambda: im.erase(KEY, GREY, area=(0.3, 0.1)), "area"),
        (lambda: im.erase(KEY, GREY, ratio=(0.0, 1.0)), "ratio"),
        (lambda: im.erase(KEY, GREY, probability=2.0), "probability"),
        (lambda: im.to_channels(PAIR, 3), "only grey"),
        (lambda: im.normalise(PAIR, [0.1, 0.2, 0.3], 1.0), "mean has shape"),
        (lambda: im.normalise(PAIR, 0.0, [1.0, 0.0]), "std must be positive"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
