"""The MLP: its formula, its parameters, and that it learns."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from jaxdl.layers import ACTIVATIONS, activation
from jaxdl.models import MLP

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 3)), jnp.float32)


def init(model):
    """Fills the parameters at random, the biases too, which would start at zero."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(1), X, train=False))["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_are_those_of_the_formula(name):
    model = MLP(classes=5, widths=(7, 8), activation=name)
    params = init(model)
    x = X.reshape(4, 6)
    for layer in ("fc1", "fc2"):
        x = activation(name)(jnp.dot(x, params[layer]["kernel"]) + params[layer]["bias"][None])
    expected = jnp.dot(x, params["fc3"]["kernel"]) + params["fc3"]["bias"][None]
    logits = model.apply({"params": params}, X, train=True)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("widths", [(), (7,), (7, 9, 8)])
def test_parameters_are_counted_by_the_formula(widths):
    sizes = (6, *widths, 5)
    expected = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
    assert sum(p.size for p in jax.tree.leaves(init(MLP(classes=5, widths=widths)))) == expected


def test_another_input_size_than_the_parameters_are_for_raises():
    model = MLP(classes=5, widths=(7,))
    with pytest.raises(ScopeParamShapeError, match="kernel"):
        model.apply({"params": init(model)}, jnp.zeros((4, 7)), train=False)
