"""cuDNN's LSTM on NVIDIA GPUs, on the parameters of `jaxdl.layers.recurrent`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.experimental import rnn
from jaxtyping import Array, Float, Int

from jaxdl.layers.recurrent import CellParams, LSTMCarry, check_carry

if TYPE_CHECKING:
    from jaxdl.layers.recurrent_stack import RecurrentLayer

ORDER = ("input_kernel", "recurrent_kernel", "input_bias", "recurrent_bias")


def cudnn_serves(
    layer: RecurrentLayer, x: Float[Array, "b t d"], lengths: Int[Array, " b"] | None
) -> bool:
    """Tells whether cuDNN computes what this layer computes.

    A plain LSTM forward in time, in float32, on sequences of one length. JAX's binding knows no
    ragged lengths and no other cell, and is no operation that a sharded program could split, so it
    is for one GPU alone.
    """
    plain = layer.cell == "lstm" and not (layer.reverse or layer.normalise or layer.chunk)
    uniform = lengths is None and x.dtype == jnp.float32
    return plain and uniform and _one_nvidia_gpu()


def cudnn_lstm(
    params: CellParams, carry: LSTMCarry, x: Float[Array, "b t d"]
) -> tuple[LSTMCarry, Float[Array, "b t h"]]:
    """Runs one layer by cuDNN; equals `scan_layer("lstm", ...)`, and raises alike.

    But it has no batching rule (`jax.vmap`) and no second derivative. A layer with `chunk=t` or
    given lengths scans.
    """
    b, t, d = x.shape
    width = params["recurrent_kernel"].shape[0]
    check_carry("lstm", carry, b, width)
    result: Any = rnn.lstm(
        x, carry.h[None], carry.c[None], pack(params), jnp.full(b, t, jnp.int32), d, width, 1, 0.0,
        False,
    )  # fmt: skip
    y, h, c = result
    return LSTMCarry(h[0], c[0]), y


def pack(params: CellParams) -> Float[Array, " n"]:
    """Lays the parameters out as cuDNN has them: kernels [g h, d] transposed, then biases."""
    return jnp.concatenate([params[name].T.ravel() for name in ORDER])


def _one_nvidia_gpu() -> bool:
    devices = jax.devices()
    return len(devices) == 1 and "NVIDIA" in devices[0].device_kind
