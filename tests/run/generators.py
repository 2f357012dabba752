"""Trained generators of images, for tests, and what their images are looked at with."""

import dataclasses

import jax
import numpy as np
from PIL import Image

from jaxdl.run.generator import load_generator
from jaxdl.run.inception import InceptionFeatures


class Pixels(InceptionFeatures):
    """Has pixels for features."""

    def __call__(self, images):
        return images.reshape(len(images), -1)


def at_random(shapes):
    """Draws parameters of such shapes.

    What starts at zero, and a few steps of training leave near it, would hide what is before it.
    """
    rng = np.random.default_rng(0)

    def draw(p):
        return (rng.normal(size=p.shape) * np.prod(p.shape[:-1], dtype=float) ** -0.5).astype("f4")

    return jax.tree.map(draw, shapes)


def load_at_random(run, kind):
    """Reads a run's generator, its parameters drawn anew."""
    trained, _ = load_generator(run, kind)
    return dataclasses.replace(trained, params=at_random(trained.params))


def read_picture(path):
    with Image.open(path) as image:
        return np.asarray(image)
