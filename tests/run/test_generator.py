"""A network as a source of images: what a sample depends on, guidance, samplers, filling in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.diffusion import Heun
from jaxdl.models import UNet
from jaxdl.run.generation_verbs import shown
from jaxdl.run.generator import Constant, Generator, Sampling
from tests.parameters import random_params

HOW = Sampling("ddpm", 4, 2.0)


@pytest.fixture(scope="module")
def generator():
    model = UNet(1, width=8, multipliers=(1,), blocks=1, attention=(True,), heads=2, classes=10)
    inputs = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    return Generator(model, random_params(model, *inputs), (8, 8, 1), "cosine", "v")


def test_a_sample_depends_on_its_label_its_number_and_the_key_alone(generator):
    labels = np.array([3, 1, 3, 7, 9], np.int32)
    images = generator.sample(labels, jax.random.key(0), HOW)
    assert images.shape == (5, 8, 8, 1)
    assert 0 <= images.min() < images.max() <= 1
    fewer = generator.sample(labels[:2], jax.random.key(0), HOW)
    np.testing.assert_allclose(fewer, images[:2], atol=1e-4)
    changed = generator.sample(np.array([3, 1, 4, 7, 9], np.int32), jax.random.key(0), HOW)
    moved = np.abs(changed - images).max((1, 2, 3)) > 1e-3
    assert moved.tolist() == [False, False, True, False, False]
    assert np.abs(images[0] - images[2]).max() > 0.05  # of one label, and not alike
    other = generator.sample(labels, jax.random.key(1), HOW)
    assert (np.abs(other - images).max((1, 2, 3)) > 0.05).all()


def test_more_samples_than_are_taken_at_once(generator, monkeypatch):
    labels = np.arange(5, dtype=np.int32)
    whole = generator.sample(labels, jax.random.key(0), HOW)
    monkeypatch.setattr("jaxdl.run.generator.BATCHES", (2,))
    np.testing.assert_allclose(generator.sample(labels, jax.random.key(0), HOW), whole, atol=1e-4)


def test_the_reverse_process_ends_with_the_samples(generator):
    labels = np.array([3, 1], np.int32)
    steps = generator.reverse(labels, jax.random.key(0), HOW)
    assert steps.shape == (HOW.steps + 1, 2, 8, 8, 1)
    images = generator.sample(labels, jax.random.key(0), HOW)
    np.testing.assert_allclose(steps[-1], images, atol=1e-4)


def test_guidance_of_1_is_none_and_of_0_forgets_the_label(generator):
    labels, others = np.array([3, 1], np.int32), np.array([5, 6], np.int32)
    draw = lambda labels, scale: generator.sample(  # noqa: E731
        labels, jax.random.key(0), HOW._replace(guidance=scale)
    )
    np.testing.assert_allclose(draw(labels, 1), draw(labels, 1 + 1e-6), atol=1e-3)
    np.testing.assert_allclose(draw(labels, 0), draw(others, 0), atol=1e-4)
    assert np.abs(draw(labels, 1) - draw(labels, 3)).max() > 1e-2


def test_an_unconditional_network_does_not_look_at_labels():
    model = UNet(1, width=8, multipliers=(1,), blocks=1, attention=(False,))
    x, time = jnp.zeros((1, 4, 4, 1)), jnp.zeros(1)
    generator = Generator(model, random_params(model, x, time), (4, 4, 1), "linear", "epsilon")
    images = [
        generator.sample(np.array(labels, np.int32), jax.random.key(0), HOW)
        for labels in ([0, 1], [7, 7])
    ]
    np.testing.assert_array_equal(*images)


class Still(UNet):
    """Predicts v = 0, so that x_0 is alpha x."""

    def __call__(self, x, time, labels=None, *, train):
        return jnp.zeros_like(x)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "unipc"])
def test_the_deterministic_samplers_agree_where_steps_are_many(sampler):
    smooth, labels = Generator(Still(1), {}, (8, 8, 1), "cosine", "v"), np.zeros(2, np.int32)
    draw = lambda *how: smooth.sample(labels, jax.random.key(0), Sampling(*how))  # noqa: E731
    np.testing.assert_allclose(draw(sampler, 120, 1), draw("dpm", 120, 1), atol=0.03)


def test_heun_walks_a_grid_that_it_can_correct_on():
    model = UNet(1, width=8, multipliers=(1,), blocks=1, attention=(False,))
    constant = Constant(model, (4, 4, 1), "cosine", "v")
    grids = (constant.grid(name, 20) for name in ("heun", "dpm"))
    heun, others = (np.abs(Heun().plan(grid).change).max() for grid in grids)
    assert heun < 5  # times a change of the estimate
    assert others > 50


def test_inpainting_keeps_what_is_known(generator):
    known = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype(np.float32)
    mask = np.broadcast_to(shown(8, 8, "right")[..., None], known.shape)
    labels = np.array([1, 2, 10], np.int32)
    images = generator.inpaint(known, mask, labels, key=jax.random.key(0), how=HOW)
    np.testing.assert_allclose(images[mask], known[mask], atol=1e-5)
    assert (np.abs(images - known).max((1, 2, 3)) > 0.05).all()
    assert [shown(8, 8, part).sum() for part in ("left", "top", "bottom", "middle")] == [
        32, 32, 32, 48
    ]  # fmt: skip
