"""One recurrent layer in one direction: a scan of the cell, with what can be done at once hoisted.

The input's part of the gates is one product over all times, before the scan. The gradient of both
kernels is one product over all times, behind the backward scan; the gradient of the recurrent one
that JAX derives by itself adds up one product a step, reading and writing the whole kernel each
time.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxdl.layers.recurrent import (
    Cell,
    CellCarry,
    CellName,
    CellParams,
    Gates,
    check_carry,
    find_cell,
    hidden,
    memory_norm,
    project,
    recur,
    with_hidden,
)
from jaxdl.product import column_sums, kernel_gradient
from jaxdl.rows import choose_rows


def scan_layer(
    cell: CellName,
    params: CellParams,
    carry: CellCarry,
    x: Float[Array, "b t d"],
    *,
    lengths: Int[Array, " b"] | None = None,
    reverse: bool = False,
    chunk: int | None = None,
) -> tuple[CellCarry, Float[Array, "b t h"]]:
    """Runs a cell along time: `cell_step` over x, from the given carry to the last one.

    Args:
      cell: the kind of cell.
      params: its parameters, see `jaxdl.layers.recurrent`.
      carry: the carry before the first step.
      x: the inputs.
      lengths: valid steps of each row, in [0, t], the padding behind them. Outputs past a row's
        end are zero, its last carry is that of its last valid step, and its padding, be it NaN,
        changes nothing.
      reverse: run from the last valid step to the first; outputs stay where their inputs are.
      chunk: rematerialise: keep the carry of every `chunk`-th step alone, and compute all else
        again for the gradient, chunk by chunk; about a third more time for t / chunk times less
        memory. None keeps everything.

    Raises ValueError for a carry or lengths of another shape and for chunks below 1.
    """
    b, t, _ = x.shape
    check_carry(cell, carry, b, params["recurrent_kernel"].shape[0])
    valid = None
    if lengths is not None:
        if lengths.shape != (b,):
            raise ValueError(f"the lengths have shape {lengths.shape}, expected {(b,)}")
        valid = jnp.arange(t)[:, None] < lengths[None, :]
    carry, steps = _as_varying(carry, x, params["recurrent_kernel"]), x.swapaxes(0, 1)
    if valid is not None:
        steps = jnp.where(valid[:, :, None], steps, 0)
    if chunk is None:
        carry, y = _span(cell, reverse, params, carry, steps, valid)
    else:
        carry, y = _chunks(cell, reverse, params, carry, steps, valid, chunk)
    return carry, y.swapaxes(0, 1)


def _as_varying(carry: CellCarry, *others: Array) -> CellCarry:
    """Under `jax.shard_map`, lets a carry that is equal on all devices become each one's own."""
    axes = frozenset().union(*map(_varying, others))

    def cast(leaf: Array) -> Array:
        missing = tuple(axes - _varying(leaf))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, carry)


def _varying(x: Array) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying


def _chunks(cell, reverse, params, carry, steps, valid, chunk) -> tuple[CellCarry, Array]:
    """Scans over chunks of time, each rematerialised; the last one is padded with invalid steps."""
    if chunk < 1:
        raise ValueError(f"a chunk has at least one step, got {chunk}")
    t, b = steps.shape[:2]
    more = -t % chunk
    if more:
        valid = jnp.ones((t, b), bool) if valid is None else valid
        steps, valid = (jnp.pad(z, [(0, more)] + [(0, 0)] * (z.ndim - 1)) for z in (steps, valid))
    chunks = (t + more) // chunk
    split = jax.tree.map(lambda z: z.reshape(chunks, chunk, *z.shape[1:]), (steps, valid))

    @partial(jax.checkpoint, prevent_cse=False)  # a scan needs no barriers against CSE
    def body(carry, x):
        return _span(cell, reverse, params, carry, *x)

    carry, y = lax.scan(body, carry, split, reverse=reverse)
    return carry, y.reshape(t + more, *y.shape[2:])[:t]


def _span(cell, reverse, params, carry, steps, valid) -> tuple[CellCarry, Array]:
    """Runs over steps [t b d] at once; a normalised cell leaves its gradient to JAX."""
    kind = find_cell(cell)
    if "recurrent_scale" not in params:
        return _scan(kind, reverse, params, carry, steps, valid)

    def body(carry, x):
        u, valid = x
        gates = kind.activate(kind.join(u, recur(params, hidden(carry))))
        return _masked(kind, carry, gates, valid, norm=memory_norm(params))

    return lax.scan(body, carry, (project(params, steps), valid), reverse=reverse)


def _masked(
    kind: Cell, carry: CellCarry, gates: Gates, valid: Bool[Array, " b"] | None, norm: Any = None
) -> tuple[CellCarry, Array]:
    """Takes a step where it is valid; elsewhere the carry stays and the output is zero."""
    after = kind.combine(carry, gates, norm)
    if valid is None:
        return after, hidden(after)
    return choose_rows(valid, (after, hidden(after)), (carry, jnp.zeros_like(hidden(carry))))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(kind: Cell, reverse: bool, params, carry, x, valid) -> tuple[CellCarry, Array]:
    (carry, y), _ = _forward(kind, reverse, params, carry, x, valid)
    return carry, y


def _forward(kind: Cell, reverse: bool, params, carry, x, valid):
    """Runs forward, keeping the gates of each step and the carry before it.

    Both biases are added within a step: before the scan it takes one more pass over all of u.
    Since the gates are kept, XLA on CPU computes each in a loop of its own, which it vectorises;
    what is used but once it would put into one long loop that it does not.
    """
    kernel, bias = params["recurrent_kernel"], params["recurrent_bias"]

    def body(carry, step):
        u, valid = step
        a = kind.join(u + params["input_bias"][None], hidden(carry) @ kernel + bias[None])
        gates = kind.activate(a)
        after, y = _masked(kind, carry, gates, valid)
        return after, (y, carry, gates)

    u = x @ params["input_kernel"]
    last, (y, before, gates) = lax.scan(body, carry, (u, valid), reverse=reverse)
    return (last, y), (params["input_kernel"], kernel, x, before, gates, valid)


def _backward(kind: Cell, reverse: bool, saved, gradient):
    """Runs backward; of a step only what follows the gates is computed again.

    Where both kernels have the same gradient behind them, one product serves both.
    """
    input_kernel, kernel, x, before, gates, valid = saved
    dcarry, dy = gradient

    def body(dcarry, step):
        before, gates, valid, dy = step
        take = lambda carry, gates: _masked(kind, carry, gates, valid)  # noqa: E731
        dcarry, dgates = jax.vjp(take, before, gates)[1]((dcarry, dy))
        da = kind.pull_back(gates, dgates)
        more = kind.split(da)[1] @ kernel.T
        return with_hidden(dcarry, hidden(dcarry) + more), da

    dcarry, da = lax.scan(body, dcarry, (before, gates, valid, dy), reverse=not reverse)
    du, dr = kind.split(da)
    h = hidden(before)
    if du is dr:
        kernels = kernel_gradient(jnp.concatenate([x, h], axis=-1), da)
        dinput_kernel, dkernel = jnp.split(kernels, [x.shape[-1]])
    else:
        dinput_kernel, dkernel = kernel_gradient(x, du), kernel_gradient(h, dr)
    dparams = {
        "input_kernel": dinput_kernel,
        "recurrent_kernel": dkernel,
        "input_bias": column_sums(du),
        "recurrent_bias": column_sums(dr),
    }
    return dparams, dcarry, du @ input_kernel.T, None


_scan.defvjp(_forward, _backward)
