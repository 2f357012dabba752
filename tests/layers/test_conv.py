"""Convolution and max-pooling against XLA's own forms, and PyTorch's, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.layers import Conv, conv, max_pool
from tests.layers.twins import assert_gradients_have_their_inputs_types

CASES = {  # (b, h, w, c), (kh, kw), o
    "1x1": ((2, 5, 7, 3), (1, 1), 4),
    "3x3": ((3, 6, 8, 5), (3, 3), 7),
    "5x5": ((2, 9, 6, 3), (5, 5), 2),
    "3x5": ((2, 6, 9, 1), (3, 5), 3),
    "3x5 to fewer channels": ((2, 6, 9, 5), (3, 5), 2),
    "few channels": ((2, 6, 8, 3), (3, 3), 5),
    "few channels, 1x5": ((2, 3, 4, 2), (1, 5), 3),
    "smaller than its kernel": ((2, 2, 3, 3), (5, 5), 4),
}
EAGER_OR_JITTED = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(a, b, tolerance=1e-5):
    """Demands max |a - b| <= tolerance * max |b|."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def xla_conv(x, kernel, bias=None):
    axes = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=axes, precision="highest"
    )
    return y if bias is None else y + bias[None, None, None]


def value_and_pullback(function, compiled):
    """Returns f(inputs, g) = function(*inputs) and the gradients of sum(g * it)."""

    def both(inputs, g):
        y, pullback = jax.vjp(function, *inputs)
        return y, *pullback(g)

    return jax.jit(both) if compiled else both


@pytest.mark.parametrize("case", ["1x1", "3x3"])
def test_of_mixed_types_each_gradient_has_its_own(case):
    shape, size, o = CASES[case]
    assert_gradients_have_their_inputs_types(
        conv, normal(*shape), normal(*size, shape[-1], o), normal(o)
    )


@pytest.mark.parametrize(
    ("case", "compiled"), [("3x3", False), ("1x1", False), *((case, True) for case in CASES)]
)
def test_a_convolution_and_its_gradients_are_xlas(case, compiled):
    shape, size, o = CASES[case]
    inputs = normal(*shape), normal(*size, shape[-1], o, seed=1), normal(o, seed=3)
    g = normal(*shape[:-1], o, seed=2)
    for ours, theirs in zip(
        value_and_pullback(conv, compiled)(inputs, g),
        value_and_pullback(xla_conv, compiled)(inputs, g),
        strict=True,
    ):
        close(ours, theirs)


@pytest.mark.parametrize("case", CASES)
def test_a_convolution_and_its_gradients_are_pytorchs(case):
    torch = pytest.importorskip("torch")
    shape, size, o = CASES[case]
    inputs = normal(*shape), normal(*size, shape[-1], o, seed=1), normal(o, seed=3)
    g = normal(*shape[:-1], o, seed=2)
    x = torch.tensor(np.asarray(inputs[0]).transpose(0, 3, 1, 2), requires_grad=True)
    weight = torch.tensor(np.asarray(inputs[1]).transpose(3, 2, 0, 1), requires_grad=True)
    bias = torch.tensor(np.asarray(inputs[2]), requires_grad=True)
    y = torch.nn.functional.conv2d(x, weight, bias, padding="same")
    y.backward(torch.tensor(np.asarray(g).transpose(0, 3, 1, 2)))
    ours = value_and_pullback(conv, True)(inputs, g)
    close(ours[0], y.detach().numpy().transpose(0, 2, 3, 1))
    close(ours[1], x.grad.numpy().transpose(0, 2, 3, 1))
    close(ours[2], weight.grad.numpy().transpose(2, 3, 1, 0))
    close(ours[3], bias.grad.numpy())


def test_a_kernel_of_an_even_size_raises():
    with pytest.raises(ValueError, match="odd sizes, got 2x3"):
        conv(normal(2, 4, 5, 3), normal(2, 3, 3, 4))


def test_vmap_is_a_loop():
    x, kernel = normal(3, 2, 6, 4, 5), normal(3, 3, 3, 5, 7, seed=1)
    g = normal(3, 2, 6, 4, 7, seed=2)
    mapped = jax.vmap(value_and_pullback(conv, False))((x, kernel), g)
    pooled = jax.vmap(value_and_pullback(lambda x: max_pool(x, 2), False))(
        (x,), g[:, :, :3, :2, :5]
    )
    for i in range(3):
        one = value_and_pullback(conv, False)((x[i], kernel[i]), g[i])
        jax.tree.map(close, tuple(y[i] for y in mapped), one)
        one = value_and_pullback(lambda x: max_pool(x, 2), False)((x[i],), g[i, :, :3, :2, :5])
        jax.tree.map(close, tuple(y[i] for y in pooled), one)


@pytest.mark.parametrize("use_bias", [True, False])
def test_the_module_is_the_function_with_a_bias(use_bias):
    x = normal(2, 6, 8, 3)
    module = Conv(5, size=3, use_bias=use_bias)
    params = module.init(jax.random.key(0), x)["params"]
    assert set(params) == ({"kernel", "bias"} if use_bias else {"kernel"})
    params = jax.tree.map(lambda p: p + 0.3, params)
    g = normal(2, 6, 8, 5, seed=1)
    y, pullback = jax.vjp(lambda params: module.apply({"params": params}, x), params)
    close(y, xla_conv(x, **params))
    gradient = pullback(g)[0]
    close(gradient["kernel"], jax.vjp(lambda k: xla_conv(x, k), params["kernel"])[1](g)[0])
    if use_bias:
        close(gradient["bias"], np.asarray(g).sum((0, 1, 2)))


def test_the_module_computes_in_its_type():
    x = normal(2, 6, 8, 3)
    module = Conv(5, dtype=jnp.bfloat16)
    params = module.init(jax.random.key(0), x)["params"]
    assert params["kernel"].dtype == jnp.float32
    assert module.apply({"params": params}, x).dtype == jnp.bfloat16


def pool_inputs(kind, shape):
    if kind == "distinct":
        values = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape) - 50
    elif kind == "ties":
        values = np.random.default_rng(0).integers(-2, 2, shape)
    else:  # behind a ReLU whole windows are zero
        values = np.zeros(shape)
    return jnp.asarray(values, jnp.float32)


def first_winners(x, g, size):
    """States the gradient in plain loops: all of g to the first maximum in row-major order."""
    x, g, gradient = np.asarray(x), np.asarray(g), np.zeros(x.shape, np.float32)
    for b, i, j, c in np.ndindex(g.shape):
        window = x[b, i * size : (i + 1) * size, j * size : (j + 1) * size, c]
        row, column = np.unravel_index(window.argmax(), window.shape)
        gradient[b, i * size + row, j * size + column, c] = g[b, i, j, c]
    return gradient


@EAGER_OR_JITTED
@pytest.mark.parametrize("kind", ["distinct", "ties", "zeros"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_gradient_of_a_pool_goes_to_the_first_winner(size, kind, compiled):
    x = pool_inputs(kind, (2, 2 * size, 3 * size, 5))
    g = normal(2, 2, 3, 5)
    y, gradient = value_and_pullback(lambda x: max_pool(x, size), compiled)((x,), g)
    windows = np.asarray(x).reshape(2, 2, size, 3, size, 5)
    np.testing.assert_array_equal(y, windows.max((2, 4)))
    np.testing.assert_array_equal(gradient, first_winners(x, g, size))


@pytest.mark.parametrize("kind", ["distinct", "ties", "zeros"])
def test_a_pool_and_its_gradient_are_pytorchs(kind):
    torch = pytest.importorskip("torch")
    x, g = pool_inputs(kind, (2, 4, 6, 3)), normal(2, 2, 3, 3)
    theirs = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2), requires_grad=True)
    y = torch.nn.functional.max_pool2d(theirs, 2)
    y.backward(torch.tensor(np.asarray(g).transpose(0, 3, 1, 2)))
    ours, gradient = value_and_pullback(lambda x: max_pool(x, 2), True)((x,), g)
    np.testing.assert_array_equal(ours, y.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(gradient, theirs.grad.numpy().transpose(0, 2, 3, 1))


def test_what_does_not_fill_a_window_is_dropped():
    x, g = normal(2, 5, 7, 3), normal(2, 2, 3, 3, seed=1)
    y, gradient = value_and_pullback(lambda x: max_pool(x, 2), True)((x,), g)
    np.testing.assert_array_equal(y, max_pool(x[:, :4, :6], 2))
    np.testing.assert_array_equal(gradient[:, :4, :6], first_winners(x[:, :4, :6], g, 2))
    assert not np.asarray(gradient[:, 4:]).any()
    assert not np.asarray(gradient[:, :, 6:]).any()


def test_nan_is_passed_on():
    x = jnp.zeros((2, 4, 4, 3)).at[1, 3, 0, 2].set(jnp.nan)
    y = np.asarray(max_pool(x, 2))
    assert np.isnan(y[1, 1, 0, 2])
    assert np.isnan(y).sum() == 1


def test_a_pool_of_half_precision_keeps_its_type():
    x = normal(2, 4, 6, 3).astype(jnp.bfloat16)
    y, gradient = value_and_pullback(lambda x: max_pool(x, 2), True)(
        (x,), jnp.ones_like(x[:, :2, :3])
    )
    assert y.dtype == gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, np.asarray(x).reshape(2, 2, 2, 3, 2, 3).max((2, 4)))
