"""Losses, one number an example and never a mean: reducing is the business of `jaxdl.metrics`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def softmax_cross_entropy(
    logits: Float[Array, "*b v"], labels: Int[Array, "*b"], *, label_smoothing: float = 0.0
) -> Float[Array, "*b"]:
    """Computes the cross-entropy, in nats, of integer labels under softmax(logits).

        loss = -sum_v q_v log softmax(logits)_v,   q = (1 - e) onehot(label) + e / V

    with e the label smoothing (Szegedy et al. 2016, section 7, arXiv:1512.00567). Computed in
    float32 whatever the type of the logits. Labels must lie in [0, V): nothing on the device
    checks them, the data sources do. Raises ValueError where the shapes do not fit.
    """
    _same_shape("labels", labels.shape, logits.shape[:-1])
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    chosen = jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
    if label_smoothing == 0.0:
        return -chosen
    return -((1 - label_smoothing) * chosen + label_smoothing * log_probs.mean(-1))


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
