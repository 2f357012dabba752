"""Laws of a carry: rows go on from batch to batch, however they are cut and wherever they lie."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl.data.text_pipeline import Streams
from jaxdl.losses import softmax_cross_entropy
from jaxdl.metrics import Mean
from jaxdl.rows import restart
from jaxdl.train import Aux, TrainState, evaluator, fit, make_eval_step, make_train_step
from jaxdl.train.sharding import Placement
from tests.train.tiny import assert_close, assert_same, to_numpy

B, T, D, V = 8, 4, 3, 7
TEXT = np.random.default_rng(0).integers(0, V, 200).astype(np.int32)
DATA = Streams(TEXT, B, length=T, seed=1)
STEPS = len(DATA) + 3  # into the second epoch
TX = optax.sgd(0.5)


def zeros(rows):
    return {"h": jnp.zeros((rows, D))}


def loss(params, model_state, batch, key, *, train):
    """A recurrent network that cannot be unlearnt: what it carries is all it knows of the past."""

    def cell(h, tokens):
        h = 0.9 * h + jnp.tanh(params["embed"][tokens])
        return h, h

    carry = restart(batch["carry"], batch["reset"])
    h, y = jax.lax.scan(cell, carry["h"], batch["tokens"].T)
    losses = softmax_cross_entropy(y.swapaxes(0, 1) @ params["out"], batch["targets"])
    value = Mean.of(losses, batch.get("mask"))
    return value, Aux({"loss": value}, model_state, {"h": h})


def init(key):
    return {"embed": jax.random.normal(key, (V, D)), "out": jax.random.normal(key, (D, V))}, {}


def start():
    return TrainState.create(init, TX, jax.random.key(0), carry=zeros(B))


@functools.cache
def trained(devices=1, parallel="jit", accum=1, chunk=1):
    placement = Placement.over({"data": devices}, parallel=parallel)
    step = make_train_step(loss, TX, accum=accum, axis_name=placement.axis_name)
    options = {"until": STEPS, "every": [STEPS], "chunk": chunk, "placement": placement}
    (end,) = fit(step, start(), DATA, **options)
    return to_numpy(end.state)


@pytest.mark.parametrize(
    "options",
    [
        {"devices": 8},
        {"devices": 4, "parallel": "shard_map"},
        {"accum": 4},
        {"devices": 2, "accum": 2},
        {"devices": 2, "parallel": "shard_map", "accum": 2, "chunk": 3},
    ],
    ids=str,
)
def test_streams_train_alike_however_they_are_cut_and_wherever_they_lie(options):
    assert_close(trained(**options), trained())
    assert np.abs(trained().carry["h"]).min(axis=1).max() > 0


def test_a_stopped_run_goes_on_bit_for_bit_and_the_carry_is_why():
    step, one = make_train_step(loss, TX), Placement.over({"data": 1})

    def run(state, until):
        (end,) = fit(step, state, DATA, until=until, every=[until], placement=one)
        return to_numpy(end.state)

    half = run(start(), 3)
    assert_same(run(half, STEPS), trained())
    forgetful = dataclasses.replace(half, carry=to_numpy(zeros(B)))
    assert not np.array_equal(run(forgetful, 4).params["embed"], run(half, 4).params["embed"])


def test_a_refused_update_leaves_the_carry_as_it_was():
    def broken(params, model_state, batch, key, *, train):
        value, aux = loss(params, model_state, batch, key, train=train)
        return dataclasses.replace(value, total=value.total * jnp.nan), aux

    state = dataclasses.replace(start(), carry={"h": jnp.ones((B, D))})
    batch = DATA.assemble(*jax.tree.map(jnp.asarray, (DATA.arrays, DATA.batch(1))))
    after, _ = jax.jit(make_train_step(broken, TX))(state, batch)
    assert_same(after.carry, state.carry)
    after, _ = jax.jit(make_train_step(loss, TX))(state, batch)
    assert not np.array_equal(after.carry["h"], state.carry["h"])


def test_no_pass_is_made_over_streams_without_end():
    with pytest.raises(ValueError, match=r"data has the seed 1, .*seed=None"):
        evaluator(make_eval_step(loss), DATA, carry=functools.partial(zeros, B))


@pytest.mark.parametrize(("rows", "devices", "parallel"), [(1, 1, "jit"), (2, 2, "shard_map")])
def test_an_evaluation_of_streams_is_that_of_the_whole_text_at_once(rows, devices, parallel):
    """With one stream; with two, whose second is given the whole first half to read before."""
    placement = Placement.over({"data": devices}, parallel=parallel)
    whole = Streams(TEXT, 1, length=len(TEXT) - 1, seed=None)
    context = (len(TEXT) - 1 + 1) // 2 if rows == 2 else 0
    data = Streams(TEXT, rows, length=T, seed=None, context=context)
    state = start()  # the carry of its own eight rows has no part in this
    step = make_eval_step(loss, axis_name=placement.axis_name)
    evaluate = evaluator(step, data, placement=placement, carry=functools.partial(zeros, rows))
    at_once = evaluator(
        make_eval_step(loss), whole, placement=Placement.over({"data": 1}),
        carry=functools.partial(zeros, 1),
    )  # fmt: skip
    state = placement.put(state)
    assert evaluate(state) == pytest.approx(at_once(start()), rel=1e-5)
    assert evaluate(state) == evaluate(state)
