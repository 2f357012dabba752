"""Normalisations: their formulas, their gradients, one example alone, and means far from zero."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.layers.activations import softmax
from jaxdl.layers.norm import (
    GroupNorm,
    LayerNorm,
    RMSNorm,
    group_norm,
    layer_norm,
    rms_norm,
)
from tests.layers.twins import assert_gradients_have_their_inputs_types, assert_twins

B, H, W, C, GROUPS = 3, 4, 5, 6, 2
EPSILON = 1e-5


def draw(*shape, seed=0, at=0.0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) + at, jnp.float32)


X, SCALE, OFFSET = draw(B, H, W, C, at=0.7), draw(B, C, seed=1), draw(B, C, seed=2)


def formula(x, scale, offset, *, silu=False):
    grouped = x.reshape(B, H * W, GROUPS, -1)
    mean, variance = (f(axis=(1, 3), keepdims=True) for f in (grouped.mean, grouped.var))
    n = ((grouped - mean) / (variance + EPSILON) ** 0.5).reshape(x.shape)
    y = n * scale[:, None, None] + offset[:, None, None]
    return y / (1 + np.exp(-y)) if silu else y


@pytest.mark.parametrize("silu", [False, True])
def test_it_is_its_formula(silu):
    y = group_norm(X, SCALE, OFFSET, groups=GROUPS, silu=silu)
    expected = formula(*(np.asarray(v, np.float64) for v in (X, SCALE, OFFSET)), silu=silu)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    # One scale a channel serves all examples.
    shared = group_norm(X, SCALE[:1], OFFSET[:1], groups=GROUPS, silu=silu)
    repeated = (jnp.broadcast_to(v[:1], (B, C)) for v in (SCALE, OFFSET))
    np.testing.assert_array_equal(shared, group_norm(X, *repeated, groups=GROUPS, silu=silu))


@pytest.mark.parametrize("silu", [False, True])
def test_its_gradient_is_that_of_its_formula(silu):
    def plain(x, scale, offset):
        grouped = x.reshape(B, H * W, GROUPS, -1)
        mean = grouped.mean((1, 3), keepdims=True)
        variance = ((grouped - mean) ** 2).mean((1, 3), keepdims=True)
        n = ((grouped - mean) * jax.lax.rsqrt(variance + EPSILON)).reshape(x.shape)
        y = n * scale[:, None, None] + offset[:, None, None]
        return jax.nn.silu(y) if silu else y

    ours = lambda *args: group_norm(*args, groups=GROUPS, silu=silu)  # noqa: E731
    g = draw(B, H, W, C, seed=3)
    gradients = (jax.jit(lambda f=f: jax.vjp(f, X, SCALE, OFFSET)[1](g))() for f in (ours, plain))
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_silu_stays_finite_far_from_zero():
    far = 1e4 * jnp.sign(OFFSET)
    y, pullback = jax.vjp(lambda v: group_norm(X, SCALE, v, groups=GROUPS, silu=True), far)
    kept = np.asarray(far > 0)
    np.testing.assert_allclose(y, formula(X, SCALE, far) * kept[:, None, None], rtol=1e-5)
    np.testing.assert_allclose(pullback(jnp.ones_like(y))[0], kept * H * W, rtol=1e-5)


def test_an_example_is_normalised_by_itself():
    y = group_norm(X, SCALE, OFFSET, groups=GROUPS)
    others = group_norm(X.at[0].multiply(9.0), SCALE, OFFSET, groups=GROUPS)
    np.testing.assert_array_equal(others[1:], y[1:])


def test_a_mean_far_from_zero_costs_no_precision():
    x = X - X.mean((1, 2), keepdims=True)
    near, far = (group_norm(v, SCALE, OFFSET, groups=GROUPS) for v in (x, x + 1024.0))
    np.testing.assert_allclose(far, near, atol=2e-3)  # x itself is rounded to 1e-4 there


def test_sixteen_bits_are_normalised_in_float32():
    x = (X + 30).astype(jnp.bfloat16)
    y = group_norm(x, SCALE, OFFSET, groups=GROUPS)
    assert y.dtype == jnp.bfloat16
    exact = group_norm(x.astype(jnp.float32), SCALE, OFFSET, groups=GROUPS)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-7)


def test_a_vector_scales_and_shifts_on_top_of_what_is_learned():
    norm = GroupNorm(groups=4)  # two, for six channels
    params = norm.init(jax.random.key(0), X)["params"]
    assert {name: p.shape for name, p in params.items()} == {"scale": (C,), "bias": (C,)}
    params = {"scale": draw(C, seed=4), "bias": draw(C, seed=5)}
    y = np.asarray(norm.apply({"params": params}, X))
    film = draw(B, 2 * C, seed=6)
    scale, offset = np.split(np.asarray(film)[:, None, None], 2, axis=-1)
    steered = norm.apply({"params": params}, X, film)
    np.testing.assert_allclose(steered, y * (1 + scale) + offset, rtol=1e-4, atol=1e-5)


def test_groups_divide_the_channels():
    with pytest.raises(ValueError, match="6 channels do not split into 4 groups"):
        group_norm(X, SCALE, OFFSET, groups=4)


# Layer and RMS normalisation, against those of Flax.
T, D = 7, 70  # more than the 32 that XLA sums at once
RNG = np.random.default_rng(0)
LAYERS = {
    "layer": (LayerNorm(epsilon=1e-3), nn.LayerNorm(epsilon=1e-3)),
    "no bias": (LayerNorm(use_bias=False), nn.LayerNorm(use_bias=False, epsilon=1e-5)),
    "rms": (RMSNorm(), nn.RMSNorm(epsilon=1e-6)),
}


def tokens(*shape):
    return jnp.asarray(RNG.normal(size=shape or (B, T, D)) + 0.5, jnp.float32)


def assert_close(a, b, **tolerance):
    tolerance = {"rtol": 1e-4, "atol": 1e-5, **tolerance}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), a, b)


@pytest.mark.parametrize("name", LAYERS)
def test_values_parameters_and_gradients_are_those_of_flax(name):
    assert_twins(*LAYERS[name], 3 * tokens(), tokens(), tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["layer", "rms"])
def test_half_precision_is_normalised_in_float32(name):
    ours, flax = (layer.clone(dtype=jnp.bfloat16) for layer in LAYERS[name])
    x = (tokens() + 100).astype(jnp.bfloat16)  # a mean far from 0: bfloat16 would lose all
    params = ours.init(jax.random.key(0), x)
    y = ours.apply(params, x)
    assert y.dtype == jnp.bfloat16
    assert_close(y.astype(float), flax.apply(params, x).astype(float), rtol=0.02, atol=0.02)


def test_the_variance_is_of_what_is_left_of_the_mean():
    """Not mean(x^2) - mean(x)^2, which loses all digits where the mean is large."""
    x = tokens()
    shifted = np.asarray(x + 3000)
    exact = shifted.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    y = layer_norm(jnp.asarray(shifted), jnp.ones(D), epsilon=0.0)
    np.testing.assert_allclose(y, exact, atol=1e-3)


def test_gradients_hold_under_vmap_scan_and_remat():
    xs, scale, bias = tokens(4, 2, T, D), tokens(D), tokens(D)
    flax = lambda x, s, b: nn.LayerNorm(epsilon=1e-5).apply({"params": {"scale": s, "bias": b}}, x)  # noqa: E731
    rms = lambda x, s: nn.RMSNorm(epsilon=1e-6).apply({"params": {"scale": s}}, x)  # noqa: E731

    def through(parts, wrap):
        layer, root, soft = parts

        def total(scale, bias, xs):
            def body(h, x):
                return soft(root(layer(h + x, scale, bias), scale)) * x, None

            return jnp.sin(jax.lax.scan(wrap(body), jnp.zeros((T, D)), xs)[0]).sum()

        each = jax.vmap(jax.grad(total, argnums=(0, 1, 2)), (None, None, 1))
        return jax.jit(each)(scale, bias, xs)

    plain = through((flax, rms, jax.nn.softmax), lambda body: body)
    for wrap in (lambda body: body, jax.checkpoint):
        assert_close(through((layer_norm, rms_norm, softmax), wrap), plain)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_of_tokens_in_16_bits_it_is_computed_in_float32(dtype):
    x, scale, bias = 300 * draw(5, 64, at=3.0), draw(64, seed=1), draw(64, seed=2)
    x = x.astype(dtype)
    for norm in (lambda x: layer_norm(x, scale, bias), lambda x: rms_norm(x, scale)):
        y = norm(x)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, norm(x.astype(jnp.float32)).astype(dtype))


def test_of_mixed_types_each_gradient_has_its_own():
    x, scale, bias = draw(5, 6), draw(6, seed=1), draw(6, seed=2)
    assert_gradients_have_their_inputs_types(layer_norm, x, scale, bias)
    assert_gradients_have_their_inputs_types(rms_norm, x, scale)
