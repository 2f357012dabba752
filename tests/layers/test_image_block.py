"""The blocks of a U-Net: they start as their shortcuts, and steer and attend by their formulas."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.layers.conv import conv
from jaxdl.layers.image_block import (
    Conditions,
    FiLMBlock,
    ImageBlock,
    PixelAttention,
    Text,
    WordFiLM,
)
from jaxdl.layers.norm import group_norm

B, H, W, C, D, S, E = 2, 3, 5, 4, 7, 6, 9
RNG = np.random.default_rng(0)
X, VECTOR, WORDS, READ = (
    jnp.asarray(RNG.normal(size=s), jnp.float32)
    for s in ((B, H, W, C), (B, D), (B, S, E), (B, S, E))
)
TEXT = Text(WORDS, READ, jnp.arange(S)[None] < jnp.array([[2], [6]]))


def randomised(layer, *inputs, **options):
    """Fills a layer's parameters at random, without compiling how they are drawn."""
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), *inputs, **options))["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.5, p.dtype), shapes)


def test_a_block_starts_as_its_shortcut():
    block = ImageBlock(C, attends=True, heads=2, groups=2)
    given = Conditions(VECTOR, TEXT)
    start = lambda: block.init_with_output(jax.random.key(0), X, given, train=False)  # noqa: E731
    y, variables = jax.jit(start)()
    assert set(variables["params"]) == {"residual", "pixels"}
    assert "words" in variables["params"]["residual"]
    np.testing.assert_array_equal(y, X)


def film_block(params, scale, offset):
    """States `FiLMBlock` of X, with scale and offset for each pixel."""

    def layer(name, x):
        return conv(x, params[name]["kernel"]) + params[name]["bias"][None, None, None]

    def norm(name, x):
        p = {key: value[None] for key, value in params[name].items()}
        return group_norm(x, p["scale"], p["bias"], groups=2)

    y = layer("conv1", jax.nn.silu(norm("norm1", X)))
    y = layer("conv2", jax.nn.silu(norm("norm2", y) * (1 + scale) + offset))
    return layer("shortcut", X) + y


def test_a_film_block_is_its_formula():
    block = FiLMBlock(6, groups=2)  # another width: there is a shortcut
    params = randomised(block, X, VECTOR, train=False)
    film = VECTOR @ params["film"]["kernel"] + params["film"]["bias"][None]
    scale, offset = jnp.split(film[:, None, None], 2, axis=-1)
    ours = block.apply({"params": params}, X, VECTOR, train=False)
    np.testing.assert_allclose(ours, film_block(params, scale, offset), rtol=1e-4, atol=1e-5)


def test_words_scale_and_shift_the_pixels_that_they_concern():
    """Word by word and pixel by pixel, on top of what the vector does everywhere."""
    block = FiLMBlock(6, groups=2)
    params = randomised(block, X, VECTOR, TEXT, train=False)
    film = VECTOR @ params["film"]["kernel"] + params["film"]["bias"][None]
    norm = {key: value[None] for key, value in params["norm1"].items()}
    pixels = np.asarray(jax.nn.silu(group_norm(X, norm["scale"], norm["bias"], groups=2)))
    words = jax.tree.map(np.asarray, params["words"])
    told = np.zeros((B, H, W, 12))
    for b, i, j in np.ndindex(B, H, W):
        asks = pixels[b, i, j] @ words["query"]["kernel"] + words["query"]["bias"]
        for s in np.flatnonzero(TEXT.seen[b]):
            gate = 1 / (1 + np.exp(-(asks @ np.asarray(READ[b, s])) / E**0.5))
            told[b, i, j] += gate * (np.asarray(WORDS[b, s]) @ words["value"]["kernel"])
    (scale, offset), (more, further) = (
        np.split(np.asarray(part), 2, axis=-1) for part in (film[:, None, None], told)
    )
    expected = film_block(params, (1 + scale) * (1 + more) - 1, offset * (1 + more) + further)
    ours = block.apply({"params": params}, X, VECTOR, TEXT, train=False)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_at_first_every_pixel_is_told_half_the_sum_of_all_words():
    start = lambda: WordFiLM(6).init_with_output(jax.random.key(0), X, TEXT)  # noqa: E731
    film, variables = jax.jit(start)()
    said = WORDS @ variables["params"]["value"]["kernel"]
    half = jnp.where(TEXT.seen[..., None], said, 0).sum(1)[:, None, None] / 2
    np.testing.assert_allclose(film, jnp.broadcast_to(half, film.shape), rtol=1e-5, atol=1e-6)


def test_gates_are_computed_in_float32():
    film = WordFiLM(6, dtype=jnp.bfloat16)
    params = randomised(film, X, TEXT)
    y, sown = film.apply({"params": params}, X, TEXT, mutable=["intermediates"])
    assert y.dtype == jnp.bfloat16
    (gates,) = sown["intermediates"]["gates"]
    assert gates.dtype == jnp.float32
    assert gates.shape == (B, H * W, S)


def test_no_words_are_no_text():
    block = FiLMBlock(C, groups=2)
    params = randomised(block, X, VECTOR, TEXT, train=False)
    run = lambda text: block.apply({"params": params}, X, VECTOR, text, train=False)  # noqa: E731
    unseen = TEXT._replace(seen=jnp.zeros_like(TEXT.seen))
    np.testing.assert_allclose(run(unseen), run(None), rtol=1e-5, atol=1e-5)
    none = Text(WORDS[:, :0], READ[:, :0], TEXT.seen[:, :0])
    np.testing.assert_allclose(run(none), run(None), rtol=1e-5, atol=1e-5)


def test_dropout_is_for_training_alone():
    block = FiLMBlock(C, groups=2, dropout=0.5)
    params = randomised(block, X, VECTOR, train=False)
    run = lambda train, seed: block.apply(  # noqa: E731
        {"params": params}, X, VECTOR, train=train, rngs={"dropout": jax.random.key(seed)}
    )
    np.testing.assert_array_equal(run(False, 1), run(False, 2))
    assert np.abs(run(True, 1) - run(True, 2)).max() > 1e-2


def test_every_pixel_attends_to_all():
    block = PixelAttention(heads=2, groups=2)
    params = randomised(block, X)
    _, sown = block.apply({"params": params}, X, mutable=["intermediates"])
    (weights,) = sown["intermediates"]["attention"]["weights"]
    assert weights.shape == (B, 2, H * W, H * W)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert np.asarray(weights).all()
