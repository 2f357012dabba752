"""Losses, one number an example and never a mean: reducing is the business of `jaxdl.metrics`."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxdl.product import row_sums


def softmax_cross_entropy(
    logits: Float[Array, "*b v"], labels: Int[Array, "*b"], *, label_smoothing: float = 0.0
) -> Float[Array, "*b"]:
    """Computes the cross-entropy, in nats, of integer labels under softmax(logits).

        loss = -sum_v q_v log softmax(logits)_v,   q = (1 - e) onehot(label) + e / V

    with e the label smoothing (Szegedy et al. 2016, section 7, arXiv:1512.00567). Computed in
    float32 whatever the type of the logits. The loss of a label outside [0, V) is NaN. Raises
    ValueError where the shapes do not fit, or labels are no integers.
    """
    _same_shape("labels", labels.shape, logits.shape[:-1])
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels are integers, and these are {labels.dtype}")
    labels = jnp.asarray(labels).astype(jnp.int32)  # in 8 bits there are not all classes
    z = logits.astype(jnp.float32)
    z = z - lax.stop_gradient(z.max(-1, keepdims=True))
    # A sum over what is hit, and no lookup, whose gradient would be scattered into zeros of the
    # size of the logits.
    hit = jax.nn.one_hot(labels, z.shape[-1], dtype=bool)
    target = (1 - label_smoothing) * row_sums(jnp.where(hit, z, 0))
    if label_smoothing:
        target = target + label_smoothing / z.shape[-1] * row_sums(z)
    losses = (jnp.log(row_sums(jnp.exp(z))) - target)[..., 0]
    return jnp.where((labels >= 0) & (labels < z.shape[-1]), losses, jnp.nan)


def binary_cross_entropy(
    logits: Float[Array, "*b"], targets: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """Computes the cross-entropy, in nats, of targets in [0, 1] under sigmoid(logits).

    loss = y softplus(-z) + (1 - y) softplus(z), in float32, which overflows for no finite z and is
    precise where the loss is small. Raises ValueError where the shapes differ.
    """
    _same_shape("targets", targets.shape, logits.shape)
    z, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    # Not max(z, 0) - z y + log1p(exp(-|z|)): its gradient is wrong where a logit is exactly 0.
    return targets * jax.nn.softplus(-z) + (1 - targets) * jax.nn.softplus(z)


def squared_error(
    predictions: Float[Array, "*b"], targets: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """Computes (prediction - target)^2, in float32; raises ValueError where the shapes differ."""
    _same_shape("targets", targets.shape, predictions.shape)
    return jnp.square(predictions.astype(jnp.float32) - targets.astype(jnp.float32))


def _same_shape(name: str, given: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Refuses what would broadcast: [b, 1] against [b] makes b^2 losses, in silence."""
    if given != expected:
        raise ValueError(f"the {name} have shape {given}, expected {expected}")
