"""The dense layer, with gradients that suit XLA on CPU; parameters as `nn.Dense` has them."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdl.product import column_sums, kernel_gradient, on_cpu, written


def dense(
    x: Float[Array, "*t d"], kernel: Float[Array, "d g"], bias: Float[Array, " g"] | None = None
) -> Float[Array, "*t g"]:
    """Computes x @ kernel + bias; on CPU gradients are by reverse mode alone."""
    x, kernel, bias = promote_dtype(x, kernel, bias)
    return (_dense_on_cpu if on_cpu() else _dense)(x, kernel, bias)


class Dense(nn.Module):
    """`dense` as a layer."""

    features: int
    use_bias: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.linear.default_kernel_init

    @nn.compact
    def __call__(self, x: Float[Array, "*t d"]) -> Float[Array, "*t g"]:
        """Maps the last axis of x; parameters "kernel" (d, g) and "bias" (g,)."""
        shape = x.shape[-1], self.features
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape[1:], self.param_dtype)
        return dense(*promote_dtype(x, kernel, bias, dtype=self.dtype))


def _dense(x: Array, kernel: Array, bias: Array | None) -> Array:
    y = x @ kernel
    return y if bias is None else y + jnp.expand_dims(bias, range(x.ndim - 1))


_dense_on_cpu = jax.custom_vjp(_dense)


def _dense_forward(x: Array, kernel: Array, bias: Array | None) -> tuple[Array, tuple]:
    return _dense(x, kernel, bias), (x, kernel, bias)


def _dense_backward(saved: tuple, g: Array) -> tuple[Array, Array, Array | None]:
    x, kernel, bias = saved
    g = written(g)  # else what makes it is computed again for each reader, and transposed
    return g @ kernel.T, kernel_gradient(x, g), None if bias is None else column_sums(g)


_dense_on_cpu.defvjp(_dense_forward, _dense_backward)
