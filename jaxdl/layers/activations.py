"""Activations by name, for configurations; in code, pass the function itself."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Activation = Literal["sigmoid", "relu", "tanh", "softmax", "gelu", "silu"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "softmax": jax.nn.softmax,  # over the last axis
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),  # Hendrycks and Gimpel, arXiv:1606.08415
    "silu": jax.nn.silu,
}
assert set(ACTIVATIONS) == set(get_args(Activation))


def activation(name: Activation) -> Callable[[Float[Array, "..."]], Float[Array, "..."]]:
    """Returns the activation of this name; raises ValueError, naming those there are."""
    if name not in ACTIVATIONS:
        raise ValueError(f"no activation {name!r}; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
