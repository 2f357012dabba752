"""Laws of many devices: the numbers are those of one, in every way, and nothing else is sent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.data import ArraySource, Resident
from jaxdl.losses import softmax_cross_entropy
from jaxdl.metrics import Mean
from jaxdl.models import MLP, EncoderDecoder, TransformerLM
from jaxdl.models.apply import apply, initialise
from jaxdl.train import Aux, TrainState, make_train_step
from jaxdl.train.fsdp import fully_sharded
from jaxdl.train.loop import Feed
from jaxdl.train.optim import OPTIMIZERS
from jaxdl.train.rules import TRANSFORMER
from jaxdl.train.sharding import Placement
from tests.parameters import random_params
from tests.train.families import CLASSES, STEPS, trained
from tests.train.tiny import assert_close

EIGHT, SPLIT = (("data", 8),), (("data", 2), ("fsdp", 4))
MESHES = [EIGHT, (("fsdp", 8),), (("data", 4), ("fsdp", 2))]
OTHERS = [
    *((("data", n),) for n in (2, 4)),
    *((("fsdp", n),) for n in (2, 4)),
    (("data", 2), ("fsdp", 2)),
    SPLIT,
]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def assert_equal(many, one):
    """Asserts that losses, final state and evaluation are equal within 1e-5.

    But for the slots of the optimiser: a sum of gradients may come near zero, and its rounding
    does not. What the slots do is in the parameters.
    """
    assert many.losses.shape == one.losses.shape == (STEPS,)
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-5)
    assert_close(many.state.replace(opt_state=()), one.state.replace(opt_state=()))
    assert many.test == pytest.approx(one.test, rel=1e-5)


@pytest.mark.parametrize("family", ["tiny", slow("cnn"), slow("residual"), "batch", "tokens"])
def test_training_moves_what_is_compared(family):
    """Else equality would be that of initialisations."""
    losses = trained(family).losses
    assert np.ptp(losses) > 0.05 * losses.mean()


@pytest.mark.parametrize("mesh", [*MESHES, *map(slow, OTHERS)], ids=str)
def test_every_mesh_trains_as_one_device_does_with_dropout(mesh):
    assert_equal(trained("tiny", mesh), trained("tiny"))


@pytest.mark.parametrize(
    ("family", "mesh"),
    [
        slow("cnn", EIGHT),  # its augmentation and dropout draw
        slow("cnn", SPLIT),
        slow("residual", SPLIT),
        ("batch", EIGHT),
        ("tokens", EIGHT),
        ("tokens", SPLIT),
    ],
    ids=str,
)
def test_each_kind_of_network_trains_as_on_one_device(family, mesh):
    assert_equal(trained(family, mesh), trained(family))


def test_tensor_parallel_blocks_train_as_on_one_device():
    mesh = (("data", 2), ("fsdp", 2), ("tensor", 2))
    many = trained("tokens", mesh, rules=TRANSFORMER)
    assert_equal(many, trained("tokens"))
    kernel = many.shardings.params["attention"]["query"]["kernel"]
    assert set(jax.tree.leaves(tuple(kernel.spec))) == {"fsdp", "tensor"}


@pytest.mark.parametrize(
    "model",
    [
        TransformerLM(12, width=8, layers=2, heads=2, limit=6, style="modern", scan=True),
        slow(TransformerLM(12, width=8, layers=2, heads=2, limit=6)),
        slow(EncoderDecoder(12, width=8, heads=2, scan=True)),
        slow(EncoderDecoder(12, width=8, heads=2)),
    ],
    ids=lambda model: f"{type(model).__name__}-{'scan' if model.scan else 'loop'}",
)
def test_a_transformer_over_a_tensor_mesh_has_the_gradient_of_one_device(model):
    tokens = np.random.default_rng(0).integers(1, 12, (4, 6)).astype(np.int32)
    sides = 2 if isinstance(model, EncoderDecoder) else 1

    @jax.jit
    @jax.grad
    def gradient(params, tokens):
        logits, _ = apply(model, params, {}, *[tokens] * sides)
        logits = logits if sides == 2 else logits[0]
        return softmax_cross_entropy(logits[:, :-1], tokens[:, 1:]).mean()

    params = random_params(model, *[jnp.asarray(tokens)] * sides)
    placement = Placement.over({"data": 2, "tensor": 2}, rules=TRANSFORMER)
    split = jax.device_put(params, placement.parameter_shardings(params))
    many = gradient(split, placement.split({"tokens": tokens})["tokens"])
    assert_close(many, gradient(params, jnp.asarray(tokens)))


@pytest.mark.parametrize(
    ("family", "devices", "parallel", "options"),
    [
        ("batch", 4, "pmap", {}),
        ("batch", 4, "shard_map", {}),
        ("tokens", 8, "pmap", {"chunk": 5}),
        slow("tokens", 2, "shard_map", {"accum": 4}),
        slow("residual", 8, "shard_map", {"chunk": 5}),
    ],
)
def test_pmap_and_shard_map_train_as_jit_does(family, devices, parallel, options):
    many = trained(family, (("data", devices),), parallel=parallel, **options)
    assert_equal(many, trained(family))


def bytes_of(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("family", [slow("cnn"), "tokens"])
def test_data_parallelism_sends_one_gradient_and_nothing_else(family):
    """No activations, no rows of the resident data: one sum, of the gradient and a few numbers."""
    run = trained(family, EIGHT)
    traffic = run.program.collectives
    assert set(traffic) == {"all-reduce"}
    assert 0 < traffic["all-reduce"].bytes - bytes_of(run.state.params) <= 16


@pytest.mark.parametrize("family", [slow("cnn"), slow("residual"), "tokens"])
def test_fsdp_sends_parameters_and_a_gradient_and_no_activations(family):
    run = trained(family, SPLIT)
    traffic = run.program.collectives
    assert set(traffic) == {"all-reduce", "all-gather"}
    params, split = run.state.params, run.shardings.params
    gathered = sum(
        leaf.nbytes
        for leaf, sharding in zip(jax.tree.leaves(params), jax.tree.leaves(split), strict=True)
        if "fsdp" in jax.tree.leaves(tuple(sharding.spec))
    )
    # On the way there, and but for what the last layers still hold, on the way back.
    assert gathered <= traffic["all-gather"].bytes <= 2 * gathered
    numbers = 8 + len(jax.tree.leaves(params))  # metrics, and of each parameter its norm
    assert 0 <= traffic["all-reduce"].bytes - bytes_of(params) <= 4 * numbers


@pytest.mark.parametrize("optimizer", ["adam", slow("muon")])
def test_fsdp_on_eight_devices_takes_an_eighth_of_the_state(optimizer):
    """By the compiled program's own account, before anything is put onto a device."""
    model = MLP(CLASSES, widths=(256, 512))
    source = {"x": np.zeros((32, 40), np.float32), "label": np.zeros(32, np.int32)}
    data = Resident(ArraySource(source), 16, seed=0)
    tx = OPTIMIZERS[optimizer](0.1)

    def loss(params, model_state, batch, key, *, train):
        logits, _ = apply(model, params, model_state, batch["x"], train=train)
        mean = Mean.of(softmax_cross_entropy(logits, batch["label"]))
        return mean, Aux({"loss": mean}, model_state)

    def state_bytes(mesh):
        placement = Placement.over(mesh, large=2**12)
        step = make_train_step(fully_sharded(loss, placement), tx, ema_decay=0.9)
        init = lambda key: initialise(model, key, jnp.zeros((1, 40)))  # noqa: E731
        create = lambda: TrainState.create(init, tx, jax.random.key(0), ema=True)  # noqa: E731
        state = placement.abstract(jax.eval_shape(create))
        return Feed(data, placement).compile_step(step, state).donated_bytes

    assert state_bytes({"fsdp": 8}) <= state_bytes({"data": 8}) / 7
