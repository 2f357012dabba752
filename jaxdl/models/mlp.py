"""The multilayer perceptron."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdl.layers import Activation, Dropout, activation


class MLP(nn.Module):
    """A stack of dense layers on the flattened input:  x <- f(W x + b),  and logits at the end.

    >>> model = MLP(classes=10, widths=(256, 128), activation="gelu")
    >>> params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    """

    classes: int
    widths: tuple[int, ...] = (256, 128)
    activation: Activation = "relu"
    dropout: float = 0.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], *, train: bool) -> Float[Array, "b v"]:
        """Computes logits, float32, from inputs of any shape after axis b.

        While training with dropout above 0 it draws from the rng "dropout".
        """
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        for i, width in enumerate(self.widths, start=1):
            x = nn.Dense(width, kernel_init=nn.initializers.he_normal(), name=f"fc{i}", **dtypes)(x)
            x = activation(self.activation)(x)
            x = Dropout(self.dropout)(x, train=train)
        logits = nn.Dense(self.classes, name=f"fc{len(self.widths) + 1}", **dtypes)(x)
        return logits.astype(jnp.float32)
