"""Parameters drawn at random: what starts at zero would hide all that is before it."""

import jax
import jax.numpy as jnp
import numpy as np


def random_params(net, *inputs, seed=1, **options):
    """Draws a network's parameters, without compiling how they start."""
    init = lambda: net.init(jax.random.key(0), *inputs, train=False, **options)  # noqa: E731
    shapes, rng = jax.eval_shape(init)["params"], np.random.default_rng(seed)
    scale = lambda s: np.prod(s.shape[:-1], dtype=float) ** -0.5  # noqa: E731
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) * scale(s), s.dtype), shapes)
