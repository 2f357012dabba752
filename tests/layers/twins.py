"""A layer beside one of Flax that should be the same."""

import jax
import numpy as np


def assert_twins(ours, flax, x, g, draw, **digits):
    """Compares parameters as they start, then outputs and gradients at parameters of `draw`."""
    params, same = (jax.jit(layer.init)(jax.random.key(0), x) for layer in (ours, flax))
    jax.tree.map(np.testing.assert_array_equal, params, same)
    params = jax.tree.map(lambda p: draw(*p.shape), params)
    results = []
    for layer in (ours, flax):
        y, back = jax.jit(lambda p, x, layer=layer: jax.vjp(layer.apply, p, x))(params, x)
        results.append((y, back(g)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **digits), *results)
