"""The blocks of a U-Net: they start as their shortcuts, and steer and attend by their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.layers.conv import conv
from jaxdl.layers.image_block import Conditions, FiLMBlock, ImageBlock, PixelAttention
from jaxdl.layers.norm import group_norm

B, H, W, C, D, S, E = 2, 3, 5, 4, 7, 6, 9
RNG = np.random.default_rng(0)
X, VECTOR, TEXT = (
    jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((B, H, W, C), (B, D), (B, S, E))
)
MASK = jnp.arange(S)[None] < jnp.array([[2], [6]])


def randomised(params):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.5, p.dtype), params)


def test_a_block_starts_as_its_shortcut():
    block = ImageBlock(C, attends=True, heads=2, groups=2)
    given = Conditions(VECTOR, TEXT, MASK)
    y, variables = block.init_with_output(jax.random.key(0), X, given, train=False)
    assert set(variables["params"]) == {"residual", "pixels", "text"}
    np.testing.assert_array_equal(y, X)


def test_a_film_block_is_its_formula():
    block = FiLMBlock(6, groups=2)  # another width: there is a shortcut
    params = randomised(block.init(jax.random.key(0), X, VECTOR, train=False)["params"])
    film = VECTOR @ params["film"]["kernel"] + params["film"]["bias"][None]
    scale, offset = jnp.split(film, 2, axis=-1)

    def layer(name, x):
        return conv(x, params[name]["kernel"]) + params[name]["bias"][None, None, None]

    def norm(name, x, scale, offset):
        p = {key: value[None] for key, value in params[name].items()}
        y = group_norm(x, p["scale"], p["bias"], groups=2)
        return jax.nn.silu(y * (1 + scale[:, None, None]) + offset[:, None, None])

    zero = jnp.zeros((B, 1))
    y = layer("conv1", norm("norm1", X, zero, zero))
    expected = layer("shortcut", X) + layer("conv2", norm("norm2", y, scale, offset))
    ours = block.apply({"params": params}, X, VECTOR, train=False)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_for_training_alone():
    block = FiLMBlock(C, groups=2, dropout=0.5)
    params = randomised(block.init(jax.random.key(0), X, VECTOR, train=False)["params"])
    run = lambda train, seed: block.apply(  # noqa: E731
        {"params": params}, X, VECTOR, train=train, rngs={"dropout": jax.random.key(seed)}
    )
    np.testing.assert_array_equal(run(False, 1), run(False, 2))
    assert np.abs(run(True, 1) - run(True, 2)).max() > 1e-2


@pytest.mark.parametrize("text", [None, TEXT], ids=["pixels", "text"])
def test_attention_looks_at_pixels_or_at_the_text_as_far_as_its_mask(text):
    block = PixelAttention(heads=2, groups=2)
    inputs = (X,) if text is None else (X, text, MASK)
    params = randomised(block.init(jax.random.key(0), *inputs)["params"])
    _, sown = block.apply({"params": params}, *inputs, mutable=["intermediates"])
    (weights,) = sown["intermediates"]["attention"]["weights"]
    assert weights.shape == (B, 2, H * W, H * W if text is None else S)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    if text is not None:
        assert not np.asarray(weights)[0, :, :, 2:].any()
        assert np.asarray(weights)[1].all()
