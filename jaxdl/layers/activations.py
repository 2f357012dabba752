"""Activations by name, for configurations; in code, pass the function itself."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.product import on_cpu, row_sums

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


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes x (1 + tanh(z)) / 2, z = sqrt(2 / pi) (x + 0.044715 x^3), as GPT-2 has it."""
    return _gelu_on_cpu(x) if on_cpu() else jax.nn.gelu(x)


def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes x sigmoid(x)."""
    return _silu_on_cpu(x) if on_cpu() else jax.nn.silu(x)


# The value is computed by a sigmoid and the gradient by tanh(z) = 2 sigmoid(2 z) - 1. One form in
# both, and XLA would keep it from forward to backward, in a pass over memory of its own.


@jax.custom_vjp
def _gelu_on_cpu(x: Array) -> Array:
    return x * jax.nn.sigmoid((8 / jnp.pi) ** 0.5 * (x + 0.044715 * x**3))


def _gelu_backward(x: Array, g: Array) -> tuple[Array]:
    c = (2 / jnp.pi) ** 0.5
    tanh = jnp.tanh(c * (x + 0.044715 * x**3))
    slope = c * (1 + 3 * 0.044715 * x**2)
    half = 0.5 * (1 + tanh)
    # In this order: far from 0 a factor of 0 meets x before the slope, which may overflow with it.
    return (g * (half + x * half * (1 - tanh) * slope),)


_gelu_on_cpu.defvjp(lambda x: (_gelu_on_cpu(x), x), _gelu_backward)


@jax.custom_vjp
def _silu_on_cpu(x: Array) -> Array:
    return x * jax.nn.sigmoid(x)


def _silu_backward(x: Array, g: Array) -> tuple[Array]:
    sigmoid = 0.5 * (1 + jnp.tanh(0.5 * x))
    return (g * (sigmoid * (1 + x * (1 - sigmoid))),)


_silu_on_cpu.defvjp(lambda x: (_silu_on_cpu(x), x), _silu_backward)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "softmax": softmax,  # over the last axis
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),  # Hendrycks and Gimpel, arXiv:1606.08415
    "silu": silu,
}
assert set(ACTIVATIONS) == set(get_args(Activation))


def activation(name: Activation) -> Callable[[Float[Array, "..."]], Float[Array, "..."]]:
    """Returns the activation of this name; raises ValueError, naming those there are."""
    if name not in ACTIVATIONS:
        raise ValueError(f"no activation {name!r}; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
