"""Recurrent cells: pure functions `(carry, x) -> (carry, y)` of their parameters.

Every cell is made of two affine maps and of what it does with them, element by element:

    u = x W_x + b_x              input_kernel [d, g h], input_bias [g h]
    r = h W_h + b_h              recurrent_kernel [h, g h], recurrent_bias [g h]
    gates = activate(join(u, r))
    carry <- combine(carry, gates),    y = h

with g gates of h units. u does not depend on the carry, so a layer computes it for all times at
once (`jaxdl.layers.recurrent_scan`). Two biases where one would do for most cells: PyTorch has two,
each gets the whole gradient, and so one bias would be trained at half their pace.

| cell             | gates, in this order        | carry           |
|------------------|-----------------------------|-----------------|
| `tanh`, `relu`   | the new state               | h [b h]         |
| `gru`            | reset, update, new          | h [b h]         |
| `lstm`           | input, forget, cell, output | LSTMCarry(h, c) |

Layer normalisation (Ba et al. 2016, arXiv:1607.06450, section 3.1) is applied to u and to r before
their biases, each gate over its own h units, and in an LSTM to c on its way into h. It takes place
where there are the parameters "input_scale" and "recurrent_scale" [g h], of an LSTM also
"cell_scale" and "cell_bias" [h].
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdl.layers.dense import dense

CellName = Literal["tanh", "relu", "gru", "lstm"]
CellParams = Mapping[str, Array]
Norm = tuple[Array, Array] | None  # scale and bias of the normalised c


class LSTMCarry(NamedTuple):
    """What an LSTM carries: its output h, and c, its memory."""

    h: Float[Array, "b h"]
    c: Float[Array, "b h"]


CellCarry = Any  # LSTMCarry, or h [b h]
Gates = tuple[Float[Array, "b h"], ...]


class Cell(NamedTuple):
    """What one kind of cell does between its two affine maps and its carry."""

    gates: int
    join: Callable[[Array, Array], Array]  # (u, r) -> a: linear, all that `activate` needs of both
    split: Callable[[Array], tuple[Array, Array]]  # the transpose of `join`: (du, dr) of da
    activate: Callable[[Array], Gates]  # a -> the gates as they act
    pull_back: Callable[[Gates, Gates], Array]  # (gates, dgates) -> da, the way back through it
    combine: Callable[[CellCarry, Gates, Norm], CellCarry]
    has_memory: bool = False


def simple(activation: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Cell:
    """The simple RNN (Elman 1990): h <- activation(u + r), of which slope(h) is the derivative."""
    activate = lambda a: (activation(a),)  # noqa: E731
    pull_back = lambda gates, dgates: dgates[0] * slope(gates[0])  # noqa: E731
    return Cell(1, jnp.add, _both, activate, pull_back, lambda h, gates, norm: gates[0])


def activate_lstm(a: Float[Array, "b g"]) -> Gates:
    """Computes sigmoid(i), sigmoid(f), tanh(g) and sigmoid(o) of i, f, g, o = a."""
    i, f, g, o = jnp.split(a, 4, axis=-1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def combine_lstm(carry: LSTMCarry, gates: Gates, norm: Norm = None) -> LSTMCarry:
    """The LSTM (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000).

    c <- f c + i g
    h <- o tanh(c)
    """
    i, f, g, o = gates
    c = f * carry.c + i * g
    shown = c if norm is None else normalise(c, norm[0]) + norm[1][None]
    return LSTMCarry(o * jnp.tanh(shown), c)


def activate_gru(a: Float[Array, "b g"]) -> Gates:
    """Computes the gates of a GRU in PyTorch's and cuDNN's variant.

        r = sigmoid(u_r + r_r),    z = sigmoid(u_z + r_z),    n = tanh(u_n + r r_n)

    Cho et al. 2014 (arXiv:1406.1078v1) reset h before the product instead of r_n behind it, bias
    and all. With the product of all gates taken at once this one needs one product a step, not two.
    """
    reset, update, new, recurrent = jnp.split(a, 4, axis=-1)
    reset, update = jax.nn.sigmoid(reset), jax.nn.sigmoid(update)
    return reset, update, jnp.tanh(new + reset * recurrent), recurrent


def combine_gru(h: Float[Array, "b h"], gates: Gates, norm: Norm = None) -> Array:
    """The GRU's new state: h <- (1 - z) n + z h."""
    _, z, n, _ = gates
    return (1 - z) * n + z * h


def _sigmoid_slope(y: Array) -> Array:
    return y * (1 - y)


def _tanh_slope(y: Array) -> Array:
    return 1 - y * y


def _pull_back_lstm(gates: Gates, dgates: Gates) -> Array:
    slopes = _sigmoid_slope, _sigmoid_slope, _tanh_slope, _sigmoid_slope
    parts = [dy * slope(y) for slope, y, dy in zip(slopes, gates, dgates, strict=True)]
    return jnp.concatenate(parts, axis=-1)


def _pull_back_gru(gates: Gates, dgates: Gates) -> Array:
    reset, update, new, recurrent = gates
    dreset, dupdate, dnew, _ = dgates  # r_n goes into n alone
    dnew = dnew * _tanh_slope(new)
    dreset = (dreset + dnew * recurrent) * _sigmoid_slope(reset)
    dupdate = dupdate * _sigmoid_slope(update)
    return jnp.concatenate([dreset, dupdate, dnew, dnew * reset], axis=-1)


def _both(da: Array) -> tuple[Array, Array]:
    return da, da


def _join_gru(u: Array, r: Array) -> Array:
    """Keeps apart what the reset gate treats apart: the new state's two parts."""
    at = 2 * u.shape[-1] // 3
    return jnp.concatenate([u[..., :at] + r[..., :at], u[..., at:], r[..., at:]], axis=-1)


def _split_gru(da: Array) -> tuple[Array, Array]:
    gates, new, recurrent = jnp.split(da, (da.shape[-1] // 2, 3 * da.shape[-1] // 4), axis=-1)
    return jnp.concatenate([gates, new], -1), jnp.concatenate([gates, recurrent], -1)


CELLS: dict[str, Cell] = {
    "tanh": simple(jnp.tanh, _tanh_slope),
    "relu": simple(jax.nn.relu, lambda y: (y > 0).astype(y.dtype)),
    "gru": Cell(3, _join_gru, _split_gru, activate_gru, _pull_back_gru, combine_gru),
    "lstm": Cell(4, jnp.add, _both, activate_lstm, _pull_back_lstm, combine_lstm, has_memory=True),
}
assert set(CELLS) == set(get_args(CellName))


def cell_step(
    cell: CellName, params: CellParams, carry: CellCarry, x: Float[Array, "b d"]
) -> tuple[CellCarry, Float[Array, "b h"]]:
    """Takes one step of a cell: `(carry, x) -> (carry, h)`.

    Raises ValueError for a cell that there is not, and for a carry of another shape.
    """
    kind = find_cell(cell)
    width = params["recurrent_kernel"].shape[0]
    check_carry(cell, carry, x.shape[0], width)
    gates = kind.activate(kind.join(project(params, x), recur(params, hidden(carry))))
    carry = kind.combine(carry, gates, memory_norm(params))
    return carry, hidden(carry)


def find_cell(name: CellName) -> Cell:
    """Returns the cell of this name; raises ValueError, naming those there are."""
    if name not in CELLS:
        raise ValueError(f"no recurrent cell {name!r}; there are {', '.join(CELLS)}")
    return CELLS[name]


def project(params: CellParams, x: Float[Array, "*t d"]) -> Float[Array, "*t g"]:
    """Computes u, the part of all gates that is the input's, at one time or at all."""
    return _affine(params, "input", x)


def recur(params: CellParams, h: Float[Array, "b h"]) -> Float[Array, "b g"]:
    """Computes r, the part of all gates that is the state's."""
    return _affine(params, "recurrent", h)


def memory_norm(params: CellParams) -> Norm:
    """Returns scale and bias of an LSTM's normalised memory, where there are any."""
    return (params["cell_scale"], params["cell_bias"]) if "cell_scale" in params else None


def normalise(x: Float[Array, "*b h"], scale: Float[Array, " h"]) -> Float[Array, "*b h"]:
    """Brings the last axis to mean 0 and variance 1, in float32, and scales it."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
    return normal.astype(x.dtype) * scale.reshape((1,) * (x.ndim - 1) + scale.shape)


def hidden(carry: CellCarry) -> Float[Array, "*t b h"]:
    """Returns the h of a carry, which is also the cell's output."""
    return carry.h if isinstance(carry, LSTMCarry) else carry


def with_hidden(carry: CellCarry, h: Any) -> CellCarry:
    """Returns the carry with another h, be it None."""
    return carry._replace(h=h) if isinstance(carry, LSTMCarry) else h


def initial_carry(cell: CellName, b: int, width: int, dtype: DTypeLike = jnp.float32) -> CellCarry:
    """Returns the carry before the first step: zeros."""
    zeros = jnp.zeros((b, width), dtype)
    return LSTMCarry(zeros, zeros) if find_cell(cell).has_memory else zeros


def check_carry(cell: CellName, carry: CellCarry, b: int, width: int) -> None:
    """Raises ValueError where a carry is another cell's, or of another batch or width."""
    expected = jax.eval_shape(lambda: initial_carry(cell, b, width))
    if jax.tree.structure(carry) != jax.tree.structure(expected):
        raise ValueError(f"the carry of {cell} is {type(expected).__name__}, got {type(carry)}")
    for leaf in jax.tree.leaves(carry):
        if leaf.shape != (b, width):
            raise ValueError(f"a carry has shape {leaf.shape}, expected {(b, width)}")


def _affine(params: CellParams, name: str, x: Array) -> Array:
    kernel, bias = params[f"{name}_kernel"], params[f"{name}_bias"]
    if (scale := params.get(f"{name}_scale")) is None:
        return dense(x, kernel, bias)
    width = params["recurrent_kernel"].shape[0]  # each gate is as wide as the state
    y = dense(x, kernel)
    y = y.reshape(*y.shape[:-1], -1, width)
    wide = normalise(y, jnp.ones(width, y.dtype)).reshape(*x.shape[:-1], -1)
    scale, bias = (jnp.expand_dims(v, range(x.ndim - 1)) for v in (scale, bias))
    return wide * scale + bias
