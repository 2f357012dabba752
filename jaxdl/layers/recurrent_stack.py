"""Recurrent layers as Flax modules: one direction of one layer, and stacks of layers.

    y, carry = Recurrent("lstm", width=512, layers=2).apply({"params": params}, x, train=False)

Sequences are batch-major, [b t d]. The carry goes in and comes out; without one a sequence starts
at zeros. Feeding a stream piece by piece, each with the carry of the piece before, computes what
feeding it whole computes.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxdl.keys import derive
from jaxdl.layers.dropout import Dropout
from jaxdl.layers.recurrent import CellCarry, CellName, CellParams, find_cell, initial_carry
from jaxdl.layers.recurrent_cudnn import cudnn_lstm, cudnn_serves
from jaxdl.layers.recurrent_scan import scan_layer
from jaxdl.product import product
from jaxdl.types import Key

StackCarry = tuple  # of a CellCarry a layer; of bidirectional layers, pairs (forward, backward)


def each_gate(init: Initializer, gates: int) -> Initializer:
    """Draws a kernel gate by gate, so that each gate is scaled, or orthogonal, by itself."""

    def draw(key: Key, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        rows, columns = shape
        # Orthogonal matrices are not computed in 16 bits.
        wide = jnp.promote_types(dtype, jnp.float32)
        one = partial(init, shape=(rows, columns // gates), dtype=wide)
        kernels = jax.vmap(lambda gate: one(derive(key, gate)))(jnp.arange(gates))
        return jnp.moveaxis(kernels, 0, 1).reshape(shape).astype(dtype)

    return draw


def forget_gate_open(key: Key, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Starts an LSTM's bias at 1 in the forget gate, else 0 (Jozefowicz et al. 2015, section 4)."""
    del key
    width = shape[0] // 4
    return jnp.zeros(shape, dtype).at[width : 2 * width].set(1)


class RecurrentLayer(nn.Module):
    """One recurrent layer in one direction.

    Parameters as `jaxdl.layers.recurrent` names them, in the order of PyTorch's gates. Input
    kernels start Glorot uniform and recurrent ones orthogonal (Saxe et al. 2014), gate by gate.
    """

    cell: CellName
    width: int
    reverse: bool = False
    normalise: bool = False
    chunk: int | None = None  # steps between carries that are kept, see `scan_layer`
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        carry: CellCarry | None = None,
        *,
        lengths: Int[Array, " b"] | None = None,
        embedding: Float[Array, "d e"] | None = None,
    ) -> tuple[Float[Array, "b t h"], CellCarry]:
        """Returns the outputs and the last carry; see `scan_layer` for lengths and errors.

        With an embedding it reads x @ embedding, of which it never computes the product: it
        multiplies the embedding by its input kernel first, once for all times.
        """
        params = self._params(x.shape[-1] if embedding is None else embedding.shape[-1])
        x, embedding, *leaves = promote_dtype(x, embedding, *params.values(), dtype=self.dtype)
        params = dict(zip(params, leaves, strict=True))
        if embedding is not None:
            params["input_kernel"] = product(embedding, params["input_kernel"])
        if carry is None:
            carry = initial_carry(self.cell, x.shape[0], self.width)
        start: Any = jax.tree.map(lambda leaf: leaf.astype(x.dtype), carry)
        if cudnn_serves(self, x, lengths):
            carry, y = cudnn_lstm(params, start, x)
        else:
            options = {"lengths": lengths, "reverse": self.reverse, "chunk": self.chunk}
            carry, y = scan_layer(self.cell, params, start, x, **options)
        return y, carry

    def _params(self, inputs: int) -> CellParams:
        cell, zeros, ones = find_cell(self.cell), nn.initializers.zeros, nn.initializers.ones
        glorot, orthogonal = nn.initializers.glorot_uniform(), nn.initializers.orthogonal()
        wide = cell.gates * self.width
        start = {
            "input_kernel": (each_gate(glorot, cell.gates), (inputs, wide)),
            "recurrent_kernel": (each_gate(orthogonal, cell.gates), (self.width, wide)),
            "input_bias": (forget_gate_open if self.cell == "lstm" else zeros, (wide,)),
            "recurrent_bias": (zeros, (wide,)),
        }
        if self.normalise:
            start |= {f"{part}_scale": (ones, (wide,)) for part in ("input", "recurrent")}
            if cell.has_memory:
                start |= {"cell_scale": (ones, (self.width,)), "cell_bias": (zeros, (self.width,))}
        return {
            name: self.param(name, init, shape, self.param_dtype)
            for name, (init, shape) in start.items()
        }


class Recurrent(nn.Module):
    """A stack of recurrent layers, one way or both ways, with dropout between them.

    Its layers are named `layer1`, `layer1_reverse`, `layer2`, ... Of a bidirectional layer both
    directions read the same input, and their outputs are set side by side: [b t 2h].
    """

    cell: CellName
    width: int
    layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0  # of every layer's outputs but the last's, as in PyTorch
    variational: bool = False  # one mask for all times (Gal and Ghahramani 2016)
    normalise: bool = False
    chunk: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        carry: StackCarry | None = None,
        *,
        lengths: Int[Array, " b"] | None = None,
        embedding: Float[Array, "d e"] | None = None,
        train: bool,
    ) -> tuple[Float[Array, "b t o"], StackCarry]:
        """Returns the last layer's outputs and all layers' last carries.

        See `scan_layer` for `lengths` and errors; ValueError too for a carry of another depth. With
        an embedding the first layer reads x @ embedding: for x of few symbols, one-hot, that is a
        fraction of the work of looking them up first.
        While training it draws from the rng "dropout".
        """
        if carry is None:
            carry = self.initial_carry(x.shape[0])
        if len(carry) != self.layers:
            raise ValueError(f"a stack of {self.layers} layers got a carry of {len(carry)}")
        last = []
        for i, start in enumerate(carry, start=1):
            if i > 1:
                shared = (1,) if self.variational else ()
                x = Dropout(self.dropout, shared, name=f"dropout{i - 1}")(x, train=train)
            x, end = self._layer(f"layer{i}", x, start, lengths=lengths, embedding=embedding)
            embedding = None
            last.append(end)
        return x, tuple(last)

    @nn.nowrap
    def initial_carry(self, b: int) -> StackCarry:
        """Returns the carry before the first step: zeros, each leaf [b h]."""
        dtype = self.dtype or self.param_dtype
        one = initial_carry(self.cell, b, self.width, dtype)
        return ((one, one) if self.bidirectional else one,) * self.layers

    def _layer(self, name: str, x: Array, carry: Any, **given: Array | None) -> tuple[Array, Any]:
        make = partial(
            RecurrentLayer,
            self.cell,
            self.width,
            normalise=self.normalise,
            chunk=self.chunk,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        if not self.bidirectional:
            return make(name=name)(x, carry, **given)
        forward, forward_end = make(name=name)(x, carry[0], **given)
        backward = make(name=f"{name}_reverse", reverse=True)
        y, backward_end = backward(x, carry[1], **given)
        return jnp.concatenate([forward, y], axis=-1), (forward_end, backward_end)
