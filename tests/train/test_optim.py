"""Optimisers against PyTorch's and their own definitions; schedules against their formulas."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl.interop.stacks import scanned
from jaxdl.train import make_train_step, optim
from tests.train.tiny import assert_close, make_batch, make_loss, make_state

STEPS, RATE = 20, 0.03
RNG = np.random.default_rng(0)
PARAMS = {
    "kernel": RNG.normal(size=(5, 3)).astype(np.float32),
    "conv": RNG.normal(size=(3, 3, 2, 4)).astype(np.float32),
}
VECTORS = {"bias": RNG.normal(size=3).astype(np.float32)}
TARGETS = {
    name: RNG.normal(size=p.shape).astype(np.float32) for name, p in (PARAMS | VECTORS).items()
}


def slope(name, p, step):
    """Gives a gradient that turns with the step and depends on the parameter."""
    return 0.3 * p - TARGETS[name] * np.float32(np.cos(step))


def follow(tx, params, steps=STEPS):
    """Takes `steps` steps and returns the parameters after each of them."""
    update = jax.jit(tx.update)
    params = jax.tree.map(jnp.asarray, params)
    state, path = tx.init(params), []
    for step in range(steps):
        gradient = {name: slope(name, p, step) for name, p in params.items()}
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


def follow_torch(make, params):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in params.items()}
    optimizer, path = make(torch.optim, tensors.values()), []
    for step in range(STEPS):
        for name, tensor in tensors.items():
            tensor.grad = torch.as_tensor(slope(name, tensor.detach().numpy(), step))
        optimizer.step()
        path.append({name: tensor.detach().numpy().copy() for name, tensor in tensors.items()})
    return path


COUPLED = {
    "adam": (
        optim.adam(RATE, decay=0.1),
        lambda torch, params: torch.Adam(params, RATE, weight_decay=0.1),
    ),
    "sgd": (
        optim.sgd(RATE, decay=0.1, momentum=0.8),
        lambda torch, params: torch.SGD(params, RATE, 0.8, weight_decay=0.1),
    ),
    "sgd, Nesterov": (
        optim.sgd(RATE, decay=0.1, momentum=0.8, nesterov=True),
        lambda torch, params: torch.SGD(params, RATE, 0.8, weight_decay=0.1, nesterov=True),
    ),
    "rmsprop": (
        optim.rmsprop(RATE, decay=0.1),
        lambda torch, params: torch.RMSprop(params, RATE, 0.99, weight_decay=0.1),
    ),
    "rmsprop, momentum": (
        optim.rmsprop(RATE, decay=0.1, momentum=0.8),
        lambda torch, params: torch.RMSprop(params, RATE, 0.99, weight_decay=0.1, momentum=0.8),
    ),
}


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_decay_follows_pytorch_step_for_step(name):
    tx, make = COUPLED[name]
    params = PARAMS | VECTORS
    for got, want in zip(follow(tx, params), follow_torch(make, params), strict=True):
        assert_close(got, want)


def test_adamw_follows_pytorch_on_matrices():
    want = follow_torch(lambda torch, params: torch.AdamW(params, RATE, weight_decay=0.2), PARAMS)
    for got, theirs in zip(follow(optim.adamw(RATE, decay=0.2), PARAMS), want, strict=True):
        assert_close(got, theirs)


@pytest.mark.parametrize("make", [optim.adamw, optim.muon])
def test_decoupled_decay_shrinks_matrices_and_kernels_but_no_vectors(make):
    """The first step's update does not depend on the decay, which is all that differs."""
    params = PARAMS | VECTORS
    plain, decayed = (follow(make(RATE, decay=decay), params, 1)[0] for decay in (0.0, 0.5))
    shrunk = {name: plain[name] - RATE * 0.5 * p for name, p in PARAMS.items()}
    assert_close(decayed, shrunk | {"bias": plain["bias"]})


def test_muon_makes_the_update_of_a_matrix_orthogonal():
    params, tx = {"kernel": jnp.asarray(PARAMS["kernel"])}, optim.muon(RATE)
    stretched = params["kernel"] * jnp.array([[12, 1, 1]])
    updates, _ = tx.update({"kernel": stretched}, tx.init(params), params)
    before, after = (np.linalg.svd(x, compute_uv=False) for x in (stretched, updates["kernel"]))
    assert before[0] / before[-1] > 10
    assert after[0] / after[-1] < 2  # five Newton-Schulz iterations come so near
    # An orthogonal 5x3 matrix has singular values of 1; scaled, its elements are 0.2 RATE or so.
    np.testing.assert_allclose(after, 0.2 * RATE * np.sqrt(5), rtol=0.5)


def test_muon_is_adamw_on_all_but_matrices():
    others = {"conv": PARAMS["conv"]} | VECTORS
    got = follow(optim.muon(RATE, decay=0.2), others | {"kernel": PARAMS["kernel"]})
    for ours, want in zip(got, follow(optim.adamw(RATE, decay=0.2), others), strict=True):
        assert_close({name: ours[name] for name in others}, want)


@pytest.mark.parametrize("make", [optim.adamw, optim.muon])
def test_stacked_layers_are_optimised_as_each_by_itself(make):
    layers = {
        f"blocks_{i}": {"up": {"kernel": kernel, "bias": bias}, "norm": {"scale": 1 + bias}}
        for i, (kernel, bias) in enumerate(zip(RNG.normal(size=(4, 5, 3)).astype(np.float32),
                                               RNG.normal(size=(4, 3)).astype(np.float32),
                                               strict=True))
    }  # fmt: skip
    tx = make(RATE, decay=0.5)

    def step(params):
        gradient = jax.tree.map(jnp.sin, params)
        updates, _ = tx.update(gradient, tx.init(params), params)
        return optax.apply_updates(params, updates)

    looped, stacked = step(layers), step(scanned(layers))
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), scanned(looped), stacked
    )


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_optimizer_overfits_one_batch_within_a_hundred_steps(name):
    rates = {"adam": 0.05, "adamw": 0.05, "sgd": 0.5, "rmsprop": 0.02, "muon": 0.2}
    tx = optim.clipped(optim.OPTIMIZERS[name](optim.cosine(rates[name], warmup=5, steps=100)), 5.0)
    step = jax.jit(make_train_step(make_loss(), tx))
    state, batch, losses = make_state(tx), make_batch(12), []
    for _ in range(100):
        state, metrics = step(state, batch)
        losses.append(metrics["loss"].compute())
    assert losses[0] > 0.5
    assert losses[-1] < 0.05


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_clipping_scales_the_whole_gradient_to_the_norm_and_lets_a_smaller_one_pass(factor):
    gradient = jax.tree.map(jnp.asarray, PARAMS | VECTORS)
    norm = float(np.sqrt(sum(np.square(g).sum() for g in gradient.values())))
    tx = optim.clipped(optax.identity(), norm * factor)
    updates, _ = tx.update(gradient, tx.init(gradient))
    assert_close(updates, {name: g * min(1, factor) for name, g in gradient.items()})
    assert optim.clipped(tx, None) is tx


@pytest.mark.parametrize("most", [0.5, 1e6])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_clipping_is_that_of_optax_and_restores_its_checkpoints(most, dtype):
    gradient = {name: jnp.asarray(g, dtype) for name, g in (PARAMS | VECTORS).items()}
    ours, theirs = optim.clip(most), optax.clip_by_global_norm(most)
    updates, expected = (tx.update(gradient, tx.init(gradient))[0] for tx in (ours, theirs))
    for a, b in zip(*map(jax.tree.leaves, (updates, expected)), strict=True):
        assert a.dtype == b.dtype == dtype
        digits = 1e-6 if dtype == np.float32 else 2**-7  # one unit in the last place
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=digits)
    states = (optax.chain(tx, optim.adam(RATE)).init(gradient) for tx in (ours, theirs))
    assert jax.tree.structure(next(states)) == jax.tree.structure(next(states))


PEAK, WARMUP, LAST = 0.7, 8, 50
MADE = {
    "constant": optim.constant(PEAK, warmup=WARMUP, steps=LAST),
    "cosine": optim.cosine(PEAK, warmup=WARMUP, steps=LAST, floor=0.1),
    "inverse_sqrt": optim.inverse_sqrt(PEAK, warmup=WARMUP, steps=LAST),
}


def rates(schedule):
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(2 * LAST)), np.float64)


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_a_schedule_rises_in_a_line_from_the_first_step_to_the_peak_and_never_again(name):
    got = rates(MADE[name])
    np.testing.assert_allclose(got[:WARMUP], PEAK * np.arange(1, WARMUP + 1) / WARMUP, rtol=1e-6)
    np.testing.assert_allclose(got[WARMUP], PEAK, rtol=1e-6)
    assert (np.diff(got[WARMUP:]) <= 0).all()
    assert (got > 0).all()


def test_constant_stays_at_its_peak():
    np.testing.assert_allclose(rates(MADE["constant"])[WARMUP:], PEAK, rtol=1e-6)


def test_cosine_is_its_formula_and_ends_at_the_floor():
    done = np.clip((np.arange(2 * LAST) - WARMUP) / (LAST - WARMUP), 0, 1)
    want = PEAK * (0.1 + 0.9 * (1 + np.cos(np.pi * done)) / 2)
    np.testing.assert_allclose(rates(MADE["cosine"])[WARMUP:], want[WARMUP:], rtol=1e-5)
    np.testing.assert_allclose(rates(MADE["cosine"])[LAST:], PEAK * 0.1, rtol=1e-5)


def test_inverse_sqrt_is_its_formula():
    steps = np.arange(WARMUP, 2 * LAST)
    want = PEAK * np.sqrt(WARMUP / steps)
    np.testing.assert_allclose(rates(MADE["inverse_sqrt"])[WARMUP:], want, rtol=1e-6)


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_without_a_warm_up_the_first_step_is_at_the_peak(name):
    schedule = optim.SCHEDULES[name](PEAK, warmup=0, steps=LAST)
    np.testing.assert_allclose(schedule(jnp.int32(0)), PEAK, rtol=1e-6)
