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
    checks them, the data sources do.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    chosen = jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
    if label_smoothing == 0.0:
        return -chosen
    return -((1 - label_smoothing) * chosen + label_smoothing * log_probs.mean(-1))


def binary_cross_entropy(
    logits: Float[Array, "*b"], targets: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """Computes the cross-entropy, in nats, of targets in [0, 1] under sigmoid(logits).

    loss = max(z, 0) - z y + log(1 + exp(-|z|)), which overflows for no z.
    """
    z = logits.astype(jnp.float32)
    return jnp.maximum(z, 0) - z * targets + jnp.log1p(jnp.exp(-jnp.abs(z)))


def squared_error(
    predictions: Float[Array, "*b"], targets: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """Computes (prediction - target)^2 for each element, in float32."""
    return jnp.square(predictions.astype(jnp.float32) - targets.astype(jnp.float32))
