"""Recurrent networks: the language model as a step, learning, and what lengths hide."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl.decode import prefill
from jaxdl.losses import softmax_cross_entropy
from jaxdl.metrics import Mean
from jaxdl.models import RecurrentLM, SequenceClassifier, SequenceTagger
from jaxdl.train import Aux, TrainState, make_train_step

B, T, V, W = 3, 6, 11, 8
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, V, (B, T)), jnp.int32)
LENGTHS = jnp.array([4, 6, 2], jnp.int32)


def init(model, *inputs):
    """Fills the parameters at random, without compiling how they are drawn."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False))
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), s.dtype), shapes)


@pytest.mark.parametrize("options", [{}, {"cell": "gru", "tied": True, "normalise": True}])
def test_one_token_at_a_time_gives_what_the_sequence_gives(options):
    model = RecurrentLM(V, width=W, dropout=0.4, **options)
    params = init(model, TOKENS)["params"]
    whole = jax.jit(lambda params: model.apply({"params": params}, TOKENS, train=False))
    logits, last = whole(params)
    carry, step = model.initial_carry(B), jax.jit(model.step)
    for t in range(T):
        carry, one = step(params, carry, TOKENS[:, t])
        np.testing.assert_allclose(one, logits[:, t], atol=1e-5)
    for a, b in zip(jax.tree.leaves(carry), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert ("output" in params) != bool(options.get("tied"))
    assert logits.shape == (B, T, V)


def test_few_symbols_are_not_looked_up_and_nothing_changes():
    """And a token that there is not is as loud either way."""

    def run(width, dropout, tokens):
        model = RecurrentLM(V, width=width, layers=1, dropout=dropout)
        params = init(model, tokens)["params"]
        rngs = {"dropout": jax.random.key(0)}

        def loss(params):
            logits, _ = model.apply({"params": params}, tokens, train=True, rngs=rngs)
            return softmax_cross_entropy(logits[:, :-1], TOKENS[:, 1:]).mean(), logits

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    # Dropping next to nothing drops nothing, but looks up.
    (few, looked_up) = (run(V, rate, TOKENS) for rate in (0, 2**-16))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), few, looked_up)
    for missing in (V, -1):
        tokens = TOKENS.at[0, 0].set(missing)
        for width in (V, V - 1):  # with a unit less than symbols they are looked up
            (_, logits), _ = run(width, 0, tokens)
            assert np.isnan(logits).any(-1).tolist() == [[True] * T, [False] * T, [False] * T]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_ragged_batch_is_read_at_once_as_token_by_token(cell):
    model = RecurrentLM(V, width=W, cell=cell)
    params = init(model, TOKENS)["params"]
    step = jax.tree_util.Partial(model.step, params)
    slow = jax.jit(prefill)(step, model.initial_carry(B), TOKENS, LENGTHS)
    fast = jax.jit(model.read)(params, model.initial_carry(B), TOKENS, LENGTHS)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), fast, slow)


def test_half_precision_computes_and_the_logits_are_float32():
    model = RecurrentLM(V, width=W, dtype=jnp.bfloat16)
    variables = init(model, TOKENS)
    logits, carry = model.apply(variables, TOKENS, train=False)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(carry)} == {jnp.dtype(jnp.bfloat16)}
    assert jax.tree.map(lambda x: (x.shape, x.dtype), model.initial_carry(B)) == jax.tree.map(
        lambda x: (x.shape, x.dtype), carry
    )


def test_a_sequence_is_learnt_by_heart_within_100_steps():
    model = RecurrentLM(V, width=16, layers=1)
    params = init(model, TOKENS)["params"]
    tx = optax.adam(0.02)

    @jax.jit
    def step(params, state):
        def objective(params):
            logits, _ = model.apply({"params": params}, TOKENS[:, :-1], train=True)
            return softmax_cross_entropy(logits, TOKENS[:, 1:]).mean()

        loss, gradient = jax.value_and_grad(objective)(params)
        updates, state = tx.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = tx.init(params), []
    for _ in range(100):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[0] > 2
    assert losses[-1] < 0.1


@pytest.mark.parametrize("model", [SequenceTagger(5, V, width=W), SequenceClassifier(5, V, W)])
def test_padding_does_not_change_a_name(model):
    variables = init(model, TOKENS, LENGTHS)
    apply = jax.jit(lambda tokens: model.apply(variables, tokens, LENGTHS, train=False))
    valid = np.arange(T) < np.asarray(LENGTHS)[:, None]
    a, b = apply(TOKENS), apply(jnp.where(valid, TOKENS, 0))
    if isinstance(model, SequenceTagger):
        assert a.shape == (B, T, 5)
        a, b = a[valid], b[valid]
    np.testing.assert_array_equal(a, b)
    first = jnp.asarray(TOKENS.at[:, 0].add(1) % V)  # the far end is seen by all
    assert (np.abs(apply(first) - apply(TOKENS)).reshape(B, -1).max(1) > 0).all()


@pytest.mark.parametrize("width", [W, V], ids=["looked up", "few symbols"])
def test_many_devices_train_as_one_does(width):
    """Under `shard_map`, which knows what is equal on all devices: a carry that begins at 0."""
    model, tx = RecurrentLM(V, width=width, layers=1), optax.sgd(0.5)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, V, (4, T)), jnp.int32)

    def loss(params, model_state, batch, key, *, train):
        logits, _ = model.apply({"params": params}, batch["tokens"][:, :-1], train=train)
        mean = Mean.of(softmax_cross_entropy(logits, batch["tokens"][:, 1:]))
        return mean, Aux({"loss": mean}, model_state)

    start = lambda key: (init(model, tokens)["params"], {})  # noqa: E731
    state = TrainState.create(start, tx, jax.random.key(0))
    alone, _ = jax.jit(make_train_step(loss, tx))(state, {"tokens": tokens})
    spec = jax.sharding.PartitionSpec
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    step = make_train_step(loss, tx, axis_name="data")
    both = jax.shard_map(step, mesh=mesh, in_specs=(spec(), spec("data")), out_specs=spec())
    together, _ = jax.jit(both)(state, {"tokens": tokens})
    for a, b in zip(jax.tree.leaves(together.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
