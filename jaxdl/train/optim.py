"""Optimisers and learning-rate schedules, thin over optax, with the weight decay spelt out.

*Coupled* decay adds `decay * p` to the gradient before the optimiser sees it, as
`torch.optim.Adam(weight_decay=)` does. *Decoupled* decay (Loshchilov and Hutter 2019,
arXiv:1711.05101) shrinks the parameters beside the optimiser, and here only those of two or more
axes: not biases, not the scales of normalisations. Axes are those of one layer, where layers are
stacked (`jaxdl.train.rules.STACKED`).
"""

import re

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from optax import contrib

from jaxdl.train.rules import STACKED
from jaxdl.train.state import leaf_name
from jaxdl.types import Array, Params, PyTree

Rate = float | optax.Schedule


def matrices(params: Params) -> Params:
    """Marks the parameters that decoupled decay shrinks: those of two or more axes."""
    return jax.tree.map(lambda axes: axes >= 2, count_axes(params))


def count_axes(params: Params) -> PyTree:
    """Counts the axes of each parameter, without that of the layers where they are stacked."""
    count = lambda path, p: jnp.ndim(p) - bool(re.search(STACKED, leaf_name(path)))  # noqa: E731
    return jax.tree_util.tree_map_with_path(count, params)


def adam(
    rate: Rate, *, decay: float = 0.0, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) with *coupled* decay, step for step PyTorch's."""
    return optax.chain(
        optax.add_decayed_weights(decay),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.scale_by_learning_rate(rate),
    )


def adamw(
    rate: Rate, *, decay: float = 0.01, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam with *decoupled* decay of the matrices."""
    return optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=decay, mask=matrices)


def sgd(
    rate: Rate, *, decay: float = 0.0, momentum: float = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum and *coupled* decay, as `torch.optim.SGD`."""
    return optax.chain(
        optax.add_decayed_weights(decay),
        optax.trace(momentum, nesterov),
        optax.scale_by_learning_rate(rate),
    )


def rmsprop(
    rate: Rate,
    *,
    decay: float = 0.0,
    smoothing: float = 0.99,
    momentum: float = 0.0,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """RMSprop (Tieleman and Hinton 2012, lecture 6e), coupled decay, as `torch.optim.RMSprop`."""
    return optax.chain(
        optax.add_decayed_weights(decay),
        optax.scale_by_rms(smoothing, eps=eps, eps_in_sqrt=False),
        optax.trace(momentum) if momentum else optax.identity(),
        optax.scale_by_learning_rate(rate),
    )


def muon(rate: Rate, *, decay: float = 0.0) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for what has two axes and AdamW for the rest, decoupled decay.

    Updates of the matrices are scaled to the size of Adam's (Liu et al. 2025, arXiv:2502.16982),
    so that one learning rate serves both.
    """
    # optax's own AdamW beside Muon has Nesterov momentum, and does not decay a convolution.
    last_two = contrib.MuonDimensionNumbers(-2, -1)
    matrix = contrib.muon(
        rate, weight_decay=decay, consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda _: last_two, params),
    )  # fmt: skip
    label = lambda axes: "muon" if axes == 2 else "adamw"  # noqa: E731
    return optax.partition(
        {"muon": matrix, "adamw": adamw(rate, decay=decay)},
        lambda params: jax.tree.map(label, count_axes(params)),
    )


OPTIMIZERS = {"adam": adam, "adamw": adamw, "sgd": sgd, "rmsprop": rmsprop, "muon": muon}


def clipped(tx: optax.GradientTransformation, norm: float | None) -> optax.GradientTransformation:
    """Clips the gradient's global norm before `tx` sees it; None leaves it alone."""
    return tx if norm is None else optax.chain(clip(norm), tx)


def clip(most: float) -> optax.GradientTransformation:
    """Scales the gradient by min(1, most / its global norm)."""

    def update(updates, state, params=None):
        del params
        # By a product with one number, which XLA fuses with whatever reads it, as no quotient is.
        norm = optax.tree.norm(updates)
        factor = jnp.where(norm <= most, 1, most / norm)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def constant(peak: float, *, warmup: int = 0, steps: int = 0) -> optax.Schedule:
    """Rises in a line over `warmup` steps, then stays at `peak`."""
    del steps
    return _after_warmup(peak, warmup, lambda step: jnp.full(jnp.shape(step), peak, jnp.float32))


def cosine(peak: float, *, warmup: int = 0, steps: int, floor: float = 0.0) -> optax.Schedule:
    """Falls from `peak` to `floor * peak` at `steps` along half a cosine (arXiv:1608.03983)."""
    span = max(steps - warmup, 1)

    def decay(step):
        done = jnp.clip((step - warmup) / span, 0, 1)
        return peak * (floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * done)))

    return _after_warmup(peak, warmup, decay)


def inverse_sqrt(peak: float, *, warmup: int, steps: int = 0) -> optax.Schedule:
    """Falls as peak * sqrt(warmup / step) after the warm-up (Vaswani et al. 2017, section 5.3)."""
    del steps
    start = max(warmup, 1)
    return _after_warmup(
        peak, warmup, lambda step: peak * jnp.sqrt(start / jnp.maximum(step, start))
    )


SCHEDULES = {"constant": constant, "cosine": cosine, "inverse_sqrt": inverse_sqrt}


def _after_warmup(peak: float, warmup: int, then: optax.Schedule) -> optax.Schedule:
    """Takes the first step at peak / warmup, never at zero, and hands over at `warmup`."""
    if warmup == 0:
        return then

    def schedule(count: ArrayLike) -> Array:
        step = jnp.asarray(count)
        return jnp.where(step < warmup, peak * (step + 1) / warmup, then(step))

    return schedule
