"""Activations by name, for configurations; in code, pass the function itself."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.layers.product import on_cpu, row_sums

Activation = Literal["sigmoid", "relu", "tanh", "softmax", "gelu", "silu"]


def softmax(x: Float[Array, "*t d"]) -> Float[Array, "*t d"]:
    """Computes exp(x) / sum(exp(x)) over the last axis; on CPU gradients are by reverse mode."""
    return _softmax_on_cpu(x) if on_cpu() else jax.nn.softmax(x)


@jax.custom_vjp
def _softmax_on_cpu(x: Array) -> Array:
    exponentials = jnp.exp(x - x.max(-1, keepdims=True))
    return exponentials / row_sums(exponentials)


def _softmax_backward(y: Array, g: Array) -> tuple[Array]:
    return (y * (g - row_sums(y * g)),)


_softmax_on_cpu.defvjp(lambda x: (_softmax_on_cpu(x),) * 2, _softmax_backward)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "softmax": softmax,  # over the last axis
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),  # Hendrycks and Gimpel, arXiv:1606.08415
    "silu": jax.nn.silu,
}
assert set(ACTIVATIONS) == set(get_args(Activation))


def activation(name: Activation) -> Callable[[Float[Array, "..."]], Float[Array, "..."]]:
    """Returns the activation of this name; raises ValueError, naming those there are."""
    if name not in ACTIVATIONS:
        raise ValueError(f"no activation {name!r}; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
