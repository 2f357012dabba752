"""The convolutional networks: sizes, and the laws that hold for every classifier."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from jaxdl.layers import conv
from jaxdl.losses import softmax_cross_entropy
from jaxdl.models import MLP, ReferenceCNN, ResidualCNN
from jaxdl.models.apply import apply, initialise
from jaxdl.models.cnn import ResidualBlock
from tests.overfit import overfit

CLASSES = 5
SHAPE = (8, 12, 3)  # two halvings; all sizes are distinct
CNN = ReferenceCNN(classes=CLASSES, widths=(4, 6, 7), hidden=11, dropout=0.5)
RESIDUAL = ResidualCNN(classes=CLASSES, widths=(4, 8, 12), groups=4, dropout=0.3)
PERCEPTRON = MLP(classes=CLASSES, widths=(16, 9), dropout=0.4)
MODELS = {"reference": CNN, "residual": RESIDUAL, "mlp": PERCEPTRON}
FAMILY = pytest.mark.parametrize("name", MODELS)


def examples(b=6, seed=0):
    rng = np.random.default_rng(seed)
    images, labels = rng.normal(size=(b, *SHAPE)), rng.integers(0, CLASSES, b)
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)


def init(model, x):
    """Fills every parameter at random: those that start at zero would hide a whole branch."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(1), x, train=False))["params"]
    rng = np.random.default_rng(2)
    scale = lambda s: (2 / max(np.prod(s.shape[:-1]), 1)) ** 0.5  # noqa: E731
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) * scale(s), s.dtype), shapes)


def forward(model, *, train):
    """Compiles the forward pass: one program for a model and a mode."""
    return jax.jit(
        lambda params, x, seed: model.apply(
            {"params": params}, x, train=train, rngs={"dropout": jax.random.key(seed)}
        )
    )


def test_the_reference_cnn_has_the_parameters_of_its_design():
    x = jax.ShapeDtypeStruct((1, 48, 48, 3), jnp.float32)
    model = ReferenceCNN(classes=10)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)["params"]
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(layer)) for name, layer in shapes.items()
    }
    channels, dense = (3, 32, 64, 128), (12 * 12 * 128, 512, 10)
    formula = {
        f"conv{i}": (9 * a + 1) * b for i, (a, b) in enumerate(itertools.pairwise(channels), 1)
    } | {f"fc{i}": (a + 1) * b for i, (a, b) in enumerate(itertools.pairwise(dense), 1)}
    assert counts == formula
    assert list(counts.values()) == [896, 18_496, 73_856, 9_437_696, 5_130]
    assert sum(counts.values()) == 9_536_074


@pytest.mark.slow
@FAMILY
def test_one_batch_is_overfitted_within_100_steps(name):
    model = MODELS[name].clone(dropout=0.0)
    images, labels = examples(b=8)
    params = jax.jit(lambda: model.init(jax.random.key(1), images, train=False)["params"])()

    def loss(params):
        logits = model.apply({"params": params}, images, train=True)
        return softmax_cross_entropy(logits, labels).mean()

    params, losses = overfit(loss, params)
    assert losses[0] > 1
    assert losses[-1] < 0.01
    # In training it is the same network as in evaluation.
    logits = model.apply({"params": params}, images, train=False)
    assert softmax_cross_entropy(logits, labels).mean() < 0.01


@FAMILY
def test_a_row_depends_on_itself_alone(name):
    model = MODELS[name].clone(dropout=0.0)
    images, _ = examples()
    params = init(model, images)
    run = forward(model, train=True)
    logits = run(params, images, 0)
    others = run(params, examples(seed=9)[0].at[2].set(images[2]), 0)
    np.testing.assert_allclose(others[2], logits[2], rtol=1e-5, atol=1e-6)
    assert np.abs(others[1] - logits[1]).max() > 1e-2
    # And not on its place, nor on the size of the batch.
    np.testing.assert_allclose(run(params, images[::-1], 0)[::-1], logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(params, images[:2], 0), logits[:2], rtol=1e-5, atol=1e-6)


@FAMILY
def test_dropout_is_for_training_alone(name):
    images, _ = examples()
    params = init(MODELS[name], images)
    train, evaluate = forward(MODELS[name], train=True), forward(MODELS[name], train=False)
    a, b, again = (train(params, images, seed) for seed in (3, 4, 3))
    assert np.abs(a - b).max() > 1e-2
    np.testing.assert_array_equal(a, again)
    np.testing.assert_array_equal(evaluate(params, images, 3), evaluate(params, images, 4))
    none = forward(MODELS[name].clone(dropout=0.0), train=True)
    np.testing.assert_allclose(
        none(params, images, 3), evaluate(params, images, 3), rtol=1e-5, atol=1e-6
    )


@FAMILY
def test_evaluation_needs_no_key_and_training_does(name):
    images, _ = examples()
    params = init(MODELS[name], images)
    jax.eval_shape(lambda: MODELS[name].apply({"params": params}, images, train=False))
    with pytest.raises(Exception, match="dropout"):
        jax.eval_shape(lambda: MODELS[name].apply({"params": params}, images, train=True))


@FAMILY
def test_bfloat16_computes_and_float32_stays(name):
    images, labels = examples()
    model = MODELS[name].clone(dtype=jnp.bfloat16, dropout=0.0)
    params = init(model, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    def objective(params):
        logits = model.apply({"params": params}, images, train=True)
        return softmax_cross_entropy(logits, labels).mean(), logits

    gradient, logits = jax.jit(jax.grad(objective, has_aux=True))(params)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    exact = forward(MODELS[name].clone(dropout=0.0), train=False)(params, images, 0)
    gap = np.abs(logits - exact).max() / np.abs(exact).max()
    assert 1e-5 < gap < 0.1  # it is coarser, so it was computed in bfloat16, and it is close


@pytest.mark.parametrize("model", [CNN, RESIDUAL], ids=["reference", "residual"])
@pytest.mark.parametrize(("h", "w"), [(10, 12), (8, 6)])
def test_images_that_do_not_halve_evenly_raise(model, h, w):
    with pytest.raises(ValueError, match=f"{h}x{w} do not halve evenly.*multiples of 4"):
        model.init(jax.random.key(0), jnp.zeros((2, h, w, 3)), train=False)


@pytest.mark.parametrize("model", [CNN, RESIDUAL], ids=["reference", "residual"])
def test_other_images_than_the_parameters_are_for_raise(model):
    images, _ = examples()
    params = init(model, images)
    wrong = images[..., :2] if model is RESIDUAL else jnp.zeros((2, 8, 16, 3))
    with pytest.raises(ScopeParamShapeError, match="kernel"):
        model.apply({"params": params}, wrong, train=False)


@FAMILY
def test_no_images_have_no_logits_and_no_gradient(name):
    model, (images, _) = MODELS[name], examples()
    params = init(model, images)

    def total(params, x):
        logits = model.apply({"params": params}, x, train=False)
        return logits.sum(), logits

    gradient, logits = jax.grad(total, has_aux=True)(params, images[:0])
    assert logits.shape == (0, CLASSES)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_a_residual_block_starts_as_its_shortcut():
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 5))
    block = ResidualBlock(features=5, norm=lambda x, name: nn.LayerNorm(name=name)(x))
    y, _ = jax.jit(lambda x: block.init_with_output(jax.random.key(1), x))(x)
    np.testing.assert_array_equal(y, x)


BATCH = ResidualCNN(classes=CLASSES, widths=(4,), norm="batch")


def test_batch_normalisation_is_of_the_batch_in_training_and_of_its_past_in_evaluation():
    images, _ = examples()
    params, start = jax.jit(lambda: initialise(BATCH, jax.random.key(1), images))()
    train = jax.jit(lambda state, x: apply(BATCH, params, state, x, train=True))
    evaluate = jax.jit(lambda state, x: apply(BATCH, params, state, x))
    logits, state = train(start, images)
    # Each channel of the last normalisation's input has moved a tenth of the way, from 0 and 1.
    block = start["batch_stats"]["stage1_block1"]
    stem = np.asarray(conv(images, params["stem"]["kernel"]))
    moved = state["batch_stats"]["stage1_block1"]["norm1"]
    np.testing.assert_allclose(moved["mean"], 0.1 * stem.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved["var"], 0.9 + 0.1 * stem.var((0, 1, 2)), rtol=1e-4)
    assert not np.any(block["norm1"]["mean"])
    # A row depends on its batch in training, and on itself alone in evaluation.
    others = examples(seed=9)[0].at[2].set(images[2])
    assert np.abs(train(start, others)[0][2] - logits[2]).max() > 1e-2
    alone, kept = evaluate(state, others)
    np.testing.assert_allclose(alone[2], evaluate(state, images)[0][2], rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, kept, state)
    # What has seen the batch often enough evaluates it as it trains on it.
    for _ in range(100):
        _, state = train(state, images)
    np.testing.assert_allclose(evaluate(state, images)[0], logits, rtol=1e-3, atol=1e-4)


def test_there_is_no_third_normalisation():
    with pytest.raises(ValueError, match="no normalisation 'layer'"):
        BATCH.clone(norm="layer").init(jax.random.key(0), jnp.zeros((2, *SHAPE)), train=False)
