"""The train step and the eval step: pure functions of (state, batch), made from a loss.

A task supplies one function, its loss. Everything else (accumulation, averaging over devices,
moving averages, the refusal of updates that are not finite) is the same for every network.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from jaxdl.keys import derive
from jaxdl.metrics import Mean, Metrics
from jaxdl.train.state import TrainState
from jaxdl.types import Array, Batch, Key, ModelState, Params, PyTree, Step


class Aux(NamedTuple):
    """What a loss returns beside its value."""

    metrics: Metrics
    model_state: ModelState
    carry: PyTree = None  # of streams: what each row hands on, see `Loss`


class Loss(Protocol):
    """All that a task supplies.

    The value is a `Mean` whose total is the sum of the unreduced loss and whose count is the
    number of examples (or tokens) in that sum. The step divides once, after the microbatches and
    the devices have been summed, so padding and ragged batches weigh what they should.

    Where the rows of a batch go on from those of the batch before, `batch["carry"]` is what these
    handed on, and `Aux.carry` what is handed on in turn: rows, each leaf with leading axis b.
    """

    def __call__(
        self, params: Params, model_state: ModelState, batch: Batch, key: Key, *, train: bool
    ) -> tuple[Mean, Aux]:
        """Computes the objective; `train` is whether dropout and augmentation apply."""
        ...


class Gradients(NamedTuple):
    """Sums, not yet divided: of the gradients, of the objective, and of the metrics."""

    total: Params
    objective: Mean
    metrics: Metrics

    def __add__(self, other):
        return jax.tree.map(jnp.add, self, other)


def make_train_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    accum: int = 1,
    ema_decay: float | None = None,
    axis_name: str | None = None,
) -> Step[TrainState, Batch, Metrics]:
    """Makes the pure step `(state, batch) -> (state, metrics)`: not jitted, free to be composed.

    Args:
      loss: see `Loss`.
      tx: an optax transformation; it sees the gradient of the mean loss.
      accum: microbatches that each batch is split into; it must divide the batch.
      ema_decay: the decay of the moving average kept in `state.ema`, None for no average.
      axis_name: the mapped axis, under `jax.pmap` or `jax.shard_map`, to sum over.

    An update that is not finite is refused: parameters, slots and averages stay as they were, the
    step still counts, and the metric "refused" is 1. Stopping on it is the loop's decision.

    The step raises ValueError, while it is traced, where it has an average and the state has none,
    or the reverse.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if (state.ema is None) != (ema_decay is None):
            raise ValueError(
                f"ema_decay is {ema_decay}, which goes with TrainState.create(...,"
                f" ema={ema_decay is not None})"
            )
        key = derive(state.key, "train", state.step)
        params, model_state = state.params, state.model_state
        if axis_name is not None:
            key = derive(key, jax.lax.axis_index(axis_name))
            # Of what it knows to be equal on all devices JAX sums the gradient over them itself,
            # and `all_reduce` would sum it again.
            params, model_state = jax.tree.map(
                lambda x: jax.lax.pcast(x, axis_name, to="varying"), (params, model_state)
            )
        start = dataclasses.replace(state, params=params, model_state=model_state)
        sums, model_state, carry = accumulate(loss, start, batch, key, accum)
        if axis_name is not None:
            sums, model_state = all_reduce(sums, model_state, axis_name)

        share = 1 / sums.objective.count  # XLA fuses a product with its readers, and no quotient
        gradient = jax.tree.map(lambda g: g * share, sums.total)
        norm = optax.tree.norm(gradient)
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = None if ema_decay is None else average(state.ema, params, ema_decay, state.step)

        finite = jnp.isfinite(norm) & jnp.isfinite(sums.objective.total)
        after = dataclasses.replace(
            state, params=params, opt_state=opt_state, model_state=model_state, ema=ema, carry=carry
        )
        after = dataclasses.replace(select(finite, after, state), step=state.step + 1)
        one = jnp.float32(1)
        health = {"grad_norm": Mean(norm, one), "refused": Mean(jnp.where(finite, 0, one), one)}
        return after, {**sums.metrics, **health}

    return train_step


def make_eval_step(loss: Loss, *, axis_name: str | None = None):
    """Makes the pure `(state, batch) -> (carry, metrics)`, with the averaged weights if any.

    The carry is that of the state's rows, one batch further on: None but for streams.
    """

    def eval_step(state: TrainState, batch: Batch) -> tuple[PyTree, Metrics]:
        key, rows = derive(state.key, "eval"), with_carry(batch, state.carry)
        _, aux = loss(state.weights, state.model_state, rows, key, train=False)
        metrics = aux.metrics if axis_name is None else jax.lax.psum(aux.metrics, axis_name)
        return aux.carry, metrics

    return eval_step


def with_carry(batch: Batch, carry: PyTree) -> dict[str, Any]:
    """Lays the carry of a batch's rows beside them, where there is one."""
    return dict(batch) if carry is None else {**batch, "carry": carry}


def accumulate(
    loss: Loss, state: TrainState, batch: Batch, key: Key, accum: int
) -> tuple[Gradients, ModelState, PyTree]:
    """Sums gradients and metrics over `accum` microbatches.

    The model's own state passes from one to the next; a carry is cut as the rows are that it
    belongs to. Both are returned as they are afterwards.
    """

    def objective(params, model_state, batch, key):
        value, aux = loss(params, model_state, batch, key, train=True)
        return value.total, (value, aux)

    def gradients(model_state, rows, key):
        grad = jax.grad(objective, has_aux=True)
        total, (value, aux) = grad(state.params, model_state, rows, key)
        return Gradients(total, value, aux.metrics), aux.model_state, aux.carry

    rows = with_carry(batch, state.carry)
    if accum == 1:
        return gradients(state.model_state, rows, key)

    def microbatch(so_far, x):
        sums, model_state = so_far
        index, rows = x
        more, model_state, carry = gradients(model_state, rows, derive(key, index))
        return (sums + more, model_state), carry

    split = jax.tree.map(lambda x: interleave(x, accum), rows)
    first = jax.tree.map(lambda x: x[0], split)
    shapes = jax.eval_shape(gradients, state.model_state, first, key)[0]
    zeros = jax.tree.map(jnp.zeros_like, shapes)
    # On CPU a convolution's gradient inside a loop misses the fast path (jax issue 12868).
    unroll = jax.default_backend() == "cpu"
    (sums, model_state), carry = jax.lax.scan(
        microbatch, (zeros, state.model_state), (jnp.arange(accum), split), unroll=unroll
    )
    return sums, model_state, jax.tree.map(deinterleave, carry)


def interleave(x: Array, accum: int) -> Array:
    """Splits axis b into (accum, b / accum), every accum-th row together.

    Rows that lie on one device stay on it, where contiguous microbatches would have to move.
    """
    if x.shape[0] % accum:
        raise ValueError(f"a batch of {x.shape[0]} does not split into {accum} microbatches")
    return x.reshape(x.shape[0] // accum, accum, *x.shape[1:]).swapaxes(0, 1)


def deinterleave(x: Array) -> Array:
    """Puts the rows back that `interleave` has taken apart: (accum, b / accum) into axis b."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def all_reduce(
    sums: Gradients, model_state: ModelState, axis_name: str
) -> tuple[Gradients, ModelState]:
    """Sums over the devices of a mapped axis; the model's own state is averaged."""
    return jax.lax.psum(sums, axis_name), jax.lax.pmean(model_state, axis_name)


def average(ema: Params, params: Params, decay: float, step: Array) -> Params:
    """Moves the average towards the parameters.

    The decay is warmed up as min(decay, (1 + step) / (10 + step)), so that the first averages do
    not remember the initialisation (as TensorFlow's ExponentialMovingAverage does).
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: (kept * e + (1 - kept) * p).astype(e.dtype), ema, params)


def select(condition: Array, a: PyTree, b: PyTree) -> PyTree:
    """Chooses between two trees of the same structure, leaf by leaf."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)
