"""Losses against their formulas and against PyTorch, far logits included."""

from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import losses
from jaxdl.metrics import Mean

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 4, (3, 5, 7)).astype(np.float32)
LABELS = RNG.integers(0, 7, (3, 5))
TARGETS = RNG.random((3, 5)).astype(np.float32)


def cross_entropy(logits, labels, smoothing):
    """States the formula in float64, with the smoothed distribution written out."""
    logits = logits.astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    classes = logits.shape[-1]
    q = (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes
    return -(q * log_probs).sum(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_softmax_cross_entropy_is_its_formula(smoothing):
    got = losses.softmax_cross_entropy(LOGITS, LABELS, label_smoothing=smoothing)
    np.testing.assert_allclose(got, cross_entropy(LOGITS, LABELS, smoothing), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_cross_entropy_and_its_gradient_are_pytorchs(smoothing):
    torch = pytest.importorskip("torch")
    logits = torch.tensor(LOGITS.reshape(15, 7), requires_grad=True)
    want = torch.nn.functional.cross_entropy(
        logits, torch.tensor(LABELS.reshape(15)), reduction="none", label_smoothing=smoothing
    )
    want.sum().backward()

    def total(logits):
        loss = losses.softmax_cross_entropy(logits, LABELS, label_smoothing=smoothing)
        return loss.sum(), loss

    gradient, loss = jax.grad(total, has_aux=True)(LOGITS)
    np.testing.assert_allclose(loss.ravel(), want.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(gradient.reshape(15, 7), logits.grad.numpy(), atol=1e-6)


def test_binary_cross_entropy_is_its_formula():
    z = LOGITS[..., 0].astype(np.float64)
    p = 1 / (1 + np.exp(-z))
    want = -(TARGETS * np.log(p) + (1 - TARGETS) * np.log(1 - p))
    np.testing.assert_allclose(
        losses.binary_cross_entropy(LOGITS[..., 0], TARGETS), want, rtol=1e-5
    )


def test_binary_cross_entropy_and_its_gradient_are_pytorchs():
    torch = pytest.importorskip("torch")
    z = np.float32([-90, -2, 0, 3, 90, 12])
    targets = np.float32([1, 0.25, 0.25, 0, 0, 1])
    logits = torch.tensor(z, requires_grad=True)
    want = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.tensor(targets), reduction="none"
    )
    want.sum().backward()
    np.testing.assert_allclose(
        losses.binary_cross_entropy(z, targets), want.detach().numpy(), rtol=1e-5
    )
    gradient = jax.grad(lambda z: losses.binary_cross_entropy(z, targets).sum())(jnp.asarray(z))
    np.testing.assert_allclose(gradient, logits.grad.numpy(), atol=1e-6)


def test_squared_error_is_its_formula():
    got = losses.squared_error(LOGITS[..., 0], TARGETS)
    np.testing.assert_allclose(got, (LOGITS[..., 0] - TARGETS) ** 2, rtol=1e-6)


def test_far_logits_stay_finite_and_so_do_their_gradients():
    far = jnp.array([[1e30, -1e30, 0], [-1e30, 1e30, 1e30]], jnp.float32)
    labels = jnp.array([1, 0])

    def softmax(z):
        return losses.softmax_cross_entropy(z, labels, label_smoothing=0.1).sum()

    def binary(z):
        return losses.binary_cross_entropy(z, jnp.array([[0, 1, 0.5], [1, 0, 0.5]])).sum()

    for loss in (softmax, binary):
        value, gradient = jax.value_and_grad(loss)(far)
        assert jnp.isfinite(value)
        assert value > 1e30
        assert jnp.isfinite(gradient).all()
        assert (gradient != 0).any()


def test_a_class_ruled_out_by_minus_infinity_leaves_the_rest_finite():
    logits = jnp.array([[0.5, -jnp.inf, 2.0], [-jnp.inf, 1.0, 0.0]])
    labels = jnp.array([2, 1])
    value, gradient = jax.value_and_grad(lambda z: losses.softmax_cross_entropy(z, labels).sum())(
        logits
    )
    kept = cross_entropy(np.array([[0.5, 2.0], [1.0, 0.0]]), np.array([1, 0]), 0.0)
    np.testing.assert_allclose(value, kept.sum(), rtol=1e-6)
    assert jnp.isfinite(gradient).all()


def test_half_precision_logits_are_reduced_in_float32():
    half = jnp.asarray(LOGITS, jnp.bfloat16)
    full = half.astype(jnp.float32)
    targets = jnp.asarray(TARGETS)
    for loss in (
        lambda z: losses.softmax_cross_entropy(z, LABELS),
        lambda z: losses.binary_cross_entropy(z[..., 0], targets),
        lambda z: losses.squared_error(z[..., 0], targets),
    ):
        assert loss(half).dtype == jnp.float32
        np.testing.assert_array_equal(loss(half), loss(full))
    rare = jnp.full(3, 0.001, jnp.bfloat16)
    cross_entropies = (losses.binary_cross_entropy(jnp.full(3, 3.0), y)
                       for y in (rare, rare.astype(jnp.float32)))  # fmt: skip
    np.testing.assert_array_equal(*cross_entropies)


@pytest.mark.parametrize(
    "call",
    [
        lambda: losses.softmax_cross_entropy(jnp.ones((4, 3)), jnp.zeros((1,), int)),
        lambda: losses.binary_cross_entropy(jnp.ones((4, 1)), jnp.ones(4)),
        lambda: losses.squared_error(jnp.ones((4, 1)), jnp.ones(4)),
    ],
)
def test_shapes_that_would_broadcast_are_refused(call):
    with pytest.raises(ValueError, match=r"have shape \(\d,\), expected"):
        call()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_that_there_is_not_has_a_loss_of_nan(smoothing):
    """It is told by the loss, and where it is masked it leaves the others alone."""
    logits, labels = jnp.asarray(LOGITS[0, :3]), jnp.array([-1, 7, 6])

    def total(logits, mask):
        loss = losses.softmax_cross_entropy(logits, labels, label_smoothing=smoothing)
        return Mean.of(loss, mask).total, loss

    gradient, loss = jax.grad(total, has_aux=True)(logits, jnp.array([False, False, True]))
    np.testing.assert_array_equal(np.isnan(loss), [True, True, False])
    np.testing.assert_array_equal(gradient[:2], 0)
    alone = jax.grad(lambda z: losses.softmax_cross_entropy(
        z, labels[2:], label_smoothing=smoothing).sum())(logits[2:])  # fmt: skip
    np.testing.assert_array_equal(gradient[2:], alone)


@pytest.mark.parametrize(("dtype", "v"), [("uint8", 256), ("uint8", 300), ("int8", 128)])
def test_labels_of_8_bits_are_of_classes_that_these_cannot_count(dtype, v):
    logits = RNG.normal(size=(4, v)).astype(np.float32)
    labels = np.array([0, 3, 44, 127], dtype)
    want = cross_entropy(logits, labels.astype(int), 0.0)
    for function in (losses.softmax_cross_entropy, jax.jit(losses.softmax_cross_entropy)):
        np.testing.assert_allclose(function(logits, labels), want, rtol=1e-5)


def test_labels_that_are_no_integers_are_refused():
    for labels in (np.float32([1.5]), np.array([True])):
        with pytest.raises(ValueError, match="labels are integers"):
            unwrap(losses.softmax_cross_entropy)(jnp.zeros((1, 3)), labels)


def test_one_example_of_one_class_has_no_loss():
    assert losses.softmax_cross_entropy(jnp.array([3.0]), jnp.int32(0)) == 0
