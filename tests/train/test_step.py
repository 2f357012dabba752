"""Laws of the step: however a batch is cut and wherever its rows lie, the update is the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxdl.losses import softmax_cross_entropy
from jaxdl.metrics import Mean
from jaxdl.train import Aux, make_eval_step, make_train_step
from jaxdl.train.sharding import make_mesh
from tests.train.tiny import assert_close, assert_same, make_batch, make_loss, make_state, to_numpy

B = 16
TX = optax.sgd(0.5)


def run(step, state, batches):
    step = jax.jit(step)
    for batch in batches:
        state, metrics = step(state, batch)
    return state, metrics


def test_the_gradient_is_that_of_the_mean_over_counted_rows():
    state, batch = make_state(TX), make_batch(B)
    rows = {name: array[batch["mask"]] for name, array in batch.items()}
    assert 0 < len(rows["y"]) < B

    def mean(params):
        h = jnp.tanh(rows["x"] @ params["inner"]["kernel"] + params["inner"]["bias"][None])
        logits = h @ params["outer"]["kernel"] + params["outer"]["bias"][None]
        return softmax_cross_entropy(logits, jnp.asarray(rows["y"])).mean()

    value, gradient = jax.value_and_grad(mean)(state.params)
    after, metrics = run(make_train_step(make_loss(), TX), state, [batch])
    assert_close(after.params, jax.tree.map(lambda p, g: p - 0.5 * g, state.params, gradient))
    assert metrics["loss"].compute() == pytest.approx(float(value), rel=1e-5)
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(gradient)))
    assert metrics["grad_norm"].compute() == pytest.approx(float(norm), rel=1e-5)
    assert int(after.step) == 1


@pytest.mark.parametrize("accum", [pytest.param(2, marks=pytest.mark.slow), 4, 16])
def test_accumulated_equals_the_full_batch(accum):
    batches = [make_batch(B, seed) for seed in range(3)]
    batches[1]["mask"] = batches[1]["mask"][::-1] & (np.arange(B) % accum != 1)
    counts = batches[1]["mask"].reshape(-1, accum).sum(0)
    assert len(set(counts)) > 1  # ragged, and one of the microbatches counts no row at all
    full, want = run(make_train_step(make_loss(), TX), make_state(TX), batches)
    parts, got = run(make_train_step(make_loss(), TX, accum=accum), make_state(TX), batches)
    assert_close(parts.params, full.params)
    assert_close(got, want)


def test_the_models_own_state_passes_through_the_microbatches():
    state, batch = make_state(TX), make_batch(B)
    after, _ = run(make_train_step(make_loss(), TX, accum=4), state, [batch])
    running = np.zeros(batch["x"].shape[1])
    for part in range(4):
        running = 0.75 * running + 0.25 * batch["x"][part::4].mean(0)
    np.testing.assert_allclose(after.model_state["running"], running, rtol=1e-5, atol=1e-6)


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match="batch of 16 does not split into 3"):
        run(make_train_step(make_loss(), TX, accum=3), make_state(TX), [make_batch(B)])


def under_pmap(step, devices):
    """Runs `step` on whole batches, cut into one row of devices."""
    mapped = jax.pmap(
        step, "data", in_axes=(None, 0), out_axes=None, devices=jax.devices()[:devices]
    )
    split = lambda x: x.reshape(devices, -1, *x.shape[1:])  # noqa: E731
    return lambda state, batch: mapped(state, jax.tree.map(split, batch))


def under_shard_map(step, devices):
    mesh = make_mesh({"data": devices})
    specs = {"in_specs": (P(), P("data")), "out_specs": P()}
    return jax.jit(jax.shard_map(step, mesh=mesh, **specs))


def under_unchecked_shard_map(step, devices):
    mesh = make_mesh({"data": devices})
    specs = {"in_specs": (P(), P("data")), "out_specs": P(), "check_vma": False}
    return jax.jit(jax.shard_map(step, mesh=mesh, **specs))


@functools.cache
def on_the_whole_batch(*, masked):
    tx = optax.sgd(0.5, momentum=0.9)
    batches = [make_batch(B, seed, masked=masked) for seed in range(3)]
    return run(make_train_step(make_loss(), tx, ema_decay=0.9), make_state(tx, ema=True), batches)


@pytest.mark.parametrize(
    ("under", "devices", "accum", "masked"),
    [
        (under_pmap, 2, 2, True),
        (under_pmap, 8, 1, True),
        (under_shard_map, 8, 2, True),
        (under_unchecked_shard_map, 4, 1, True),
        pytest.param(under_shard_map, 4, 2, False, marks=pytest.mark.slow),
        pytest.param(under_unchecked_shard_map, 2, 2, False, marks=pytest.mark.slow),
    ],
)
def test_a_mapped_axis_equals_jit_on_the_whole_batch(under, devices, accum, masked):
    """With a mask, the devices count different numbers of rows, and the last one none."""
    tx, ema = optax.sgd(0.5, momentum=0.9), {"ema_decay": 0.9}
    batches = [make_batch(B, seed, masked=masked) for seed in range(3)]
    whole, want = on_the_whole_batch(masked=masked)
    mapped = under(make_train_step(make_loss(), tx, accum=accum, axis_name="data", **ema), devices)
    state = make_state(tx, ema=True)
    for batch in batches:
        state, got = mapped(state, batch)
    if accum > 1:  # the model's own state is then another
        state = state.replace(model_state=whole.model_state)
    assert_close(state, whole)
    assert_close(got, want)


@pytest.mark.parametrize("under", [under_pmap, under_shard_map])
def test_an_evaluation_on_a_mapped_axis_equals_jit_on_the_whole_batch(under):
    state, batch = make_state(TX), make_batch(B)
    want = jax.jit(make_eval_step(make_loss()))(state, batch)
    got = under(make_eval_step(make_loss(), axis_name="data"), 8)(state, batch)
    assert_close(got, want)


@pytest.mark.parametrize(("decay", "ema"), [(0.9, False), (None, True)])
def test_a_state_and_a_step_that_disagree_on_the_average_are_told(decay, ema):
    step = make_train_step(make_loss(), TX, ema_decay=decay)
    with pytest.raises(ValueError, match=rf"ema_decay is {decay}, .* TrainState.*ema={not ema}"):
        run(step, make_state(TX, ema=ema), [make_batch(B)])


def test_the_average_follows_its_formula_and_warms_up():
    decay, steps = 0.4, 9
    step = jax.jit(make_train_step(make_loss(), TX, ema_decay=decay))
    state = make_state(TX, ema=True)
    want = to_numpy(state.params)
    used = [min(decay, (1 + n) / (10 + n)) for n in range(steps)]
    assert used[0] < used[1] < used[-1] == decay
    for n in range(steps):
        state, _ = step(state, make_batch(B, n))
        want = jax.tree.map(
            lambda e, p, d=used[n]: d * e + (1 - d) * p, want, to_numpy(state.params)
        )
        assert_close(state.ema, want)


def poisoned(where):
    """Makes a loss that is not finite where the batch says so, in its value, slope or both."""
    plain = make_loss()

    def loss(params, model_state, batch, key, *, train):
        value, aux = plain(params, model_state, batch, key, train=train)
        bad = batch["bad"].any()
        weight = params["outer"]["bias"].sum()
        if where in ("value", "both"):
            value = value.replace(total=value.total + jnp.where(bad, jnp.nan, 0))
        if where in ("slope", "both"):  # 0 in value, of infinite slope
            zero = jnp.where(bad, weight - jax.lax.stop_gradient(weight), 1)
            value = value.replace(total=value.total + jnp.sqrt(zero))
        return value, aux

    return loss


@pytest.mark.parametrize("where", ["value", "slope", "both"])
@pytest.mark.parametrize("accum", [1, 2])
def test_what_is_not_finite_changes_nothing_but_the_step(where, accum):
    tx = optax.adam(0.1)
    step = jax.jit(make_train_step(poisoned(where), tx, accum=accum, ema_decay=0.9))
    good = make_batch(B) | {"bad": np.zeros(B, bool)}
    bad = good | {"bad": np.arange(B) == 3}
    before, metrics = step(make_state(tx, ema=True), good)
    assert metrics["refused"].compute() == 0
    after, metrics = step(before, bad)
    assert metrics["refused"].compute() == 1
    assert_same(after, before.replace(step=before.step + 1))
    later, metrics = step(after, good)
    assert metrics["refused"].compute() == 0
    assert not np.array_equal(later.params["inner"]["kernel"], after.params["inner"]["kernel"])


def test_the_same_state_and_batch_give_the_same_bits():
    step = jax.jit(make_train_step(make_loss(rate=0.5), TX, accum=2))
    state, batch = make_state(TX), make_batch(B)
    assert_same(step(state, batch), step(state, batch))


def test_draws_depend_on_the_step_and_not_on_what_was_drawn_before():
    step = jax.jit(make_train_step(make_loss(rate=0.5), TX))
    state, batch = make_state(TX), make_batch(B)
    later = state.replace(step=state.step + 1)
    first, second = step(state, batch)[0], step(later, batch)[0]
    again = step(later, batch)[0], step(state, batch)[0]
    assert_same(again, (second, first))
    assert not np.array_equal(first.params["outer"]["kernel"], second.params["outer"]["kernel"])


def drawing_loss(params, model_state, batch, key, *, train):
    """Reports the sum of what was drawn, and the sum of its squares."""
    del train
    draw = jax.random.uniform(key)
    weighted = jnp.float32(0) * params["outer"]["bias"].sum() + batch["x"].sum() * 0
    metrics = {"draw": Mean(draw + weighted, 1.0), "square": Mean(draw**2 + weighted, 1.0)}
    return Mean(weighted, jnp.float32(1)), Aux(metrics, model_state)


@pytest.mark.parametrize("under", [under_pmap, under_shard_map])
@pytest.mark.parametrize(("accum", "devices"), [(2, 1), (1, 2)])
def test_microbatches_and_devices_draw_apart(under, accum, devices):
    step = make_train_step(drawing_loss, TX, accum=accum, axis_name="data")
    _, metrics = under(step, devices)(make_state(TX), make_batch(B))
    draw, square = (float(metrics[name].total) for name in ("draw", "square"))
    assert square / 2 - (draw / 2) ** 2 > 1e-4  # the variance of the two


def test_an_evaluation_takes_the_average_where_there_is_one_and_drops_nothing():
    batch, state = make_batch(B), make_state(TX, ema=True)
    other = jax.tree.map(lambda p: p + 1, state.params)
    evaluate = jax.jit(make_eval_step(make_loss(rate=0.5)))
    want = jax.jit(make_eval_step(make_loss()))(state, batch)
    assert_same(evaluate(state.replace(params=other), batch), want)
    assert_same(evaluate(state.replace(ema=None), batch), want)
    assert_same(evaluate(state.replace(step=state.step + 1), batch), want)
    _, metrics = evaluate(state.replace(ema=other), batch)
    assert metrics["loss"].total != want[1]["loss"].total
