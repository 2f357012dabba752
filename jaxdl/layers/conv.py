"""Convolution and pooling, channels last."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv(x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw c o"]) -> Float[Array, "b h w o"]:
    """Convolves with zero padding that keeps the size (odd kernels, stride 1)."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)


def max_pool(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b h/size w/size c"]:
    """Takes the maximum of each size x size window."""
    return nn.max_pool(x, (size, size), (size, size))


class Conv(nn.Module):
    """A convolution of stride 1 that keeps the size, with a bias."""

    features: int
    size: int = 3
    use_bias: bool = True
    dtype: jnp.dtype | None = None
    param_dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        """Convolves x; parameters "kernel" (size, size, c, o) and "bias" (o,)."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv(x, kernel)
        return y if bias is None else y + bias
