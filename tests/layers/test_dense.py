"""The dense layer is `nn.Dense`, in its values, its parameters and its gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.layers.dense import Dense, dense
from tests.layers.twins import assert_gradients_have_their_inputs_types, assert_twins

RNG = np.random.default_rng(0)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("wide", "narrow"), [(7, 5), (5, 7)], ids=["narrower", "wider"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_values_parameters_and_gradients_are_those_of_flax(wide, narrow, use_bias):
    ours, flax = (kind(narrow, use_bias=use_bias) for kind in (Dense, nn.Dense))
    assert_twins(ours, flax, draw(2, 3, wide), draw(2, 3, narrow), draw, **CLOSE)


def test_of_mixed_types_each_gradient_has_its_own():
    assert_gradients_have_their_inputs_types(dense, draw(2, 3, 7), draw(7, 5), draw(5))


def test_the_gradient_holds_under_vmap_scan_and_remat():
    xs, kernel, bias = draw(4, 3, 5), draw(5, 5), draw(5)

    def through(layer, wrap):
        def total(kernel, bias, xs):
            def body(h, x):
                h = jnp.tanh(layer(h + x, kernel, bias))
                return h, None

            start = jnp.zeros(xs.shape[1:])
            return (jax.lax.scan(wrap(body), start, xs)[0] ** 2).sum()

        each = jax.vmap(jax.grad(total, argnums=(0, 1, 2)), (None, None, 0))
        return jax.jit(each)(kernel, bias, jnp.stack([xs, 2 * xs]))

    plain = through(lambda x, k, b: x @ k + b[None], lambda body: body)
    for wrap in (lambda body: body, jax.checkpoint):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            through(dense, wrap), plain,
        )  # fmt: skip


def test_half_precision_stays_half():
    x = draw(2, 3, 5).astype(jnp.bfloat16)
    layer = Dense(7, dtype=jnp.bfloat16)
    params = layer.init(jax.random.key(0), x)
    of_params, of_x = jax.grad(lambda p, x: layer.apply(p, x).sum().astype(float), (0, 1))(
        params, x
    )
    assert layer.apply(params, x).dtype == of_x.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(of_params)} == {jnp.dtype("float32")}
