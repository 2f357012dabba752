"""Products with a kernel, and sums as products with ones, in forms that are fast on CPU.

XLA on CPU sums along rows by windows of 32, in loops of their own, and down columns on one core. A
product with ones runs on all of them, with vectors. But what a product reads has to be written
first, so that before it an axis is folded: additions run in the loop that computes what is summed,
and an eighth of it is written. On accelerators the plain forms are best.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def on_cpu() -> bool:
    """Tells whether programs are compiled for the CPU."""
    return jax.default_backend() == "cpu"


@jax.custom_vjp
def product(x: Float[Array, "*t d"], kernel: Float[Array, "d g"]) -> Float[Array, "*t g"]:
    """Computes x @ kernel; see `kernel_gradient` for what is special in its gradient."""
    return x @ kernel


def _forward(x, kernel):
    return x @ kernel, (x, kernel)


def _backward(saved, dy):
    (x, kernel), dy = saved, written(dy)
    return dy @ kernel.T, kernel_gradient(x, dy)


product.defvjp(_forward, _backward)


def kernel_gradient(x: Float[Array, "*t d"], dy: Float[Array, "*t g"]) -> Float[Array, "d g"]:
    """Sums x^T dy over all rows.

    XLA on CPU reads x by columns, again and again. Where it is written out transposed first, the
    product takes a quarter less time; the barrier keeps XLA from seeing through that. Where dy is
    the narrower it is dy that is transposed, and the small result back again.
    """
    x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    if not on_cpu():
        return x.T @ dy
    if x.shape[1] <= dy.shape[1]:
        return lax.optimization_barrier(x.T) @ dy
    return lax.optimization_barrier(lax.optimization_barrier(dy.T) @ x).T


def written(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns x, which XLA on CPU then computes once and writes to memory, whoever reads it.

    It would compute whatever takes but sums and products anew within each reader, and a barrier is
    gone by the time it decides that. A quotient it computes once. This one is by 1, as LLVM knows,
    but not XLA: no number is above infinity.
    """
    return x / jnp.where(x > jnp.inf, x, 1) if on_cpu() else x


def column_sums(x: Float[Array, "b *n o"]) -> Float[Array, " o"]:
    """Sums over all axes but the last: the gradient of a bias."""
    if not on_cpu():
        return x.sum(range(x.ndim - 1))
    # A batch of products is the fastest, which read x as it lies.
    b, *n, o = x.shape if x.ndim > 2 else (1, *x.shape)
    return middle_sums(x.reshape(b, math.prod(n), o)).sum(0)


def middle_sums(x: Float[Array, "b *n o"]) -> Float[Array, "b o"]:
    """Sums over all axes but the first and the last."""
    if not on_cpu():
        return x.sum(range(1, x.ndim - 1))
    b, *n, o = x.shape
    x = _folded(x.reshape(b, math.prod(n), o), 1)
    return jnp.einsum("bn,bno->bo", jnp.ones(x.shape[:2], x.dtype), x)


def row_sums(x: Float[Array, "*t d"]) -> Float[Array, "*t 1"]:
    """Sums over the last axis."""
    if not on_cpu():
        return x.sum(-1, keepdims=True)
    x = _folded(x, x.ndim - 1)
    return (x @ jnp.ones(x.shape[-1], x.dtype))[..., None]


def _folded(x: Array, axis: int) -> Array:
    """Adds to each other eight parts of an axis, or as many below eight as divide it."""
    n = x.shape[axis]
    parts = max(k for k in range(1, 9) if n % k == 0)
    return x.reshape(*x.shape[:axis], parts, n // parts, *x.shape[axis + 1 :]).sum(axis)
