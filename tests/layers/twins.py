"""A layer beside one of Flax that should be the same."""

import jax
import jax.numpy as jnp
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


def assert_gradients_have_their_inputs_types(function, *inputs):
    """Takes x in 16 bits beside parameters in 32, and the other way round, twice each."""
    for dtypes in ((jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16)):
        mixed = [inputs[0].astype(dtypes[0]), *(p.astype(dtypes[1]) for p in inputs[1:])]
        twice = lambda *args: (function(*args) + function(*args)).astype(jnp.float32).sum()  # noqa: E731
        gradients = jax.grad(twice, range(len(mixed)))(*mixed)
        assert [g.dtype for g in gradients] == [p.dtype for p in mixed]
