"""Activations, against PyTorch and against what defines them."""

import inspect
import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.layers import ACTIVATIONS, Activation, activation
from jaxdl.layers.activations import gelu_tanh, silu, softmax

X = jnp.asarray(np.linspace(-6, 6, 39).reshape(3, 13), jnp.float32)


@pytest.mark.parametrize("name", get_args(Activation))
def test_values_and_gradients_are_those_of_pytorch(name):
    torch = pytest.importorskip("torch")
    functions = {
        "gelu": torch.nn.functional.gelu,
        "silu": torch.nn.functional.silu,
        "softmax": lambda x: torch.softmax(x, -1),
    }
    x = torch.tensor(np.asarray(X), requires_grad=True)
    weight = np.cos(np.arange(39, dtype=np.float32)).reshape(3, 13)
    y = functions.get(name, getattr(torch, name, None))(x)
    (y * torch.tensor(weight)).sum().backward()
    ours, pullback = jax.vjp(activation(name), X)
    np.testing.assert_allclose(ours, y.detach().numpy(), rtol=1e-5, atol=1e-6)
    gradient = pullback(jnp.asarray(weight))[0]
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_values_are_those_of_the_formulas():
    x = np.asarray(X, np.float64)
    sigmoid = 1 / (1 + np.exp(-x))
    erf = np.vectorize(math.erf)
    exact = {
        "sigmoid": sigmoid,
        "relu": x * (x > 0),
        "tanh": np.tanh(x),
        "softmax": np.exp(x) / np.exp(x).sum(-1, keepdims=True),
        "gelu": x * (1 + erf(x / 2**0.5)) / 2,
        "silu": x * sigmoid,
    }
    assert exact.keys() == ACTIVATIONS.keys()
    for name, expected in exact.items():
        np.testing.assert_allclose(activation(name)(X), expected, rtol=1e-5, atol=1e-6)


def test_an_unknown_name_raises_and_names_those_there_are():
    # Unwrapped: the tests check annotations, which would be first to speak.
    with pytest.raises(ValueError, match="no activation 'swish'; there are sigmoid, relu, tanh"):
        inspect.unwrap(activation)("swish")


def test_the_softmax_is_that_of_jax_and_does_not_overflow():
    rng, shape = np.random.default_rng(0), (2, 3, 70)
    x, g = (jnp.asarray(30 * rng.normal(size=shape), jnp.float32) for _ in range(2))
    x = x.at[0, 0].set(-1e30).at[0, 1, :-1].set(-1e30).at[1, 1, 0].set(1e4)
    results = [(y, back(g)) for y, back in (jax.vjp(f, x) for f in (softmax, jax.nn.softmax))]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)
    np.testing.assert_allclose(results[0][0][0, 0], np.full(70, 1 / 70), rtol=1e-5)
    assert np.isnan(softmax(x.at[1, 2, 3].set(jnp.nan))[1, 2]).all()


FAST = {"gelu": (gelu_tanh, jax.nn.gelu), "silu": (silu, jax.nn.silu)}
fast = pytest.mark.parametrize(("ours", "jaxs"), FAST.values(), ids=FAST)


@fast
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_fast_forms_and_their_gradients_are_those_of_jax(ours, jaxs, dtype):
    x = jnp.linspace(-9, 9, 2 * 3 * 67, dtype=jnp.float32).reshape(2, 3, 67).astype(dtype)
    g = jnp.cos(7 * x)
    results = [(y, *back(g)) for y, back in (jax.vjp(f, x) for f in (jax.jit(ours), jaxs))]
    digits = {"rtol": 1e-5, "atol": 1e-5} if dtype == jnp.float32 else {"rtol": 0.02, "atol": 0.02}
    for a, b in zip(*results, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.astype(float), b.astype(float), **digits)


@fast
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_far_from_zero_fast_forms_are_the_identity_or_nothing(ours, jaxs, dtype):
    far = jnp.asarray([1e2, 1e6, 1e13, 1e16, 1e18], dtype)
    for x, slope in ((far, 1), (-far, 0)):
        y, back = jax.vjp(ours, x)
        np.testing.assert_array_equal(y.astype(float), (slope * x).astype(float))
        np.testing.assert_array_equal(back(jnp.ones_like(x))[0].astype(float), slope)
    assert np.isnan(ours(jnp.asarray(jnp.nan, dtype)))


@fast
def test_fast_gradients_hold_under_vmap_scan_and_remat(ours, jaxs):
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3, 7)), jnp.float32)

    def gradients(f, wrap):
        def total(xs):
            def body(h, x):
                return f(h + x), None

            return jnp.sin(jax.lax.scan(wrap(body), jnp.zeros(xs.shape[1:]), xs)[0]).sum()

        return jax.jit(jax.vmap(jax.grad(total)))(xs)

    plain = gradients(jaxs, lambda body: body)
    for wrap in (lambda body: body, jax.checkpoint):
        np.testing.assert_allclose(gradients(ours, wrap), plain, rtol=1e-4, atol=1e-6)
