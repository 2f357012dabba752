"""Stacks of recurrent layers: both directions, padding, dropout, and how kernels start."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.layers import Recurrent, RecurrentLayer, cell_step, scan_layer
from jaxdl.layers.recurrent import check_carry, initial_carry
from jaxdl.layers.recurrent_stack import each_gate
from tests.layers.test_recurrent import CELL, LENGTHS, B, D, H, T, close, make_params, random


@partial(jax.jit, static_argnums=0)
def run_stack(model, params, x, lengths=LENGTHS, carry=None):
    return model.apply({"params": params}, x, carry, lengths=lengths, train=False)


def make_stack(cell="lstm", layers=2, **options):
    model = Recurrent(cell, H, layers=layers, bidirectional=True, **options)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), random(B, T, D), train=False))
    leaves, tree = jax.tree.flatten(shapes["params"])
    params = tree.unflatten([0.6 * random(*s.shape, seed=i) for i, s in enumerate(leaves)])
    return model, params


def test_an_embedding_is_multiplied_by_the_kernel_instead_of_by_the_input():
    model, params = make_stack(layers=1)
    x, embedding, weight = random(B, T, 3), random(3, D, seed=7), random(B, T, 2 * H, seed=8)

    def of(read):
        def total(*inputs):
            return (read(*inputs) * weight).sum()

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(params, x, embedding)

    apply = lambda p, x, **more: model.apply({"params": p}, x, train=False, **more)[0]  # noqa: E731
    close(of(lambda p, x, e: apply(p, x, embedding=e)), of(lambda p, x, e: apply(p, x @ e)), 1e-5)


@pytest.mark.parametrize(("cell", "options"), [("gru", {}), ("lstm", {"chunk": 2})])
def test_padding_changes_nothing_be_it_nan(cell, options):
    model, params = make_stack(cell, **options)
    x, weight = random(B, T, D), random(B, T, 2 * H, seed=8)
    padding = np.arange(T) >= np.asarray(LENGTHS)[:, None]

    def total(params, x):
        y, carry = run_stack(model, params, x)
        return (y * weight).sum() + sum(leaf.sum() for leaf in jax.tree.leaves(carry)), (y, carry)

    both = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    (grads, of_x), (y, carry) = both(params, jnp.where(padding[..., None], jnp.nan, x))
    (other, _), (same, same_carry) = both(params, x)
    assert not np.asarray(y)[padding].any()
    assert not np.asarray(of_x)[padding].any()
    close((grads, y, carry), (other, same, same_carry), 0)
    length = int(LENGTHS[0])  # the first row as if it were alone, unpadded
    here = jax.tree.map(lambda z: z[:1], (y[:, :length], carry))
    close(here, run_stack(model, params, x[:1, :length], None), 1e-5)


@CELL
@pytest.mark.parametrize("reverse", [False, True])
def test_the_past_does_not_see_the_future_by_gradient(cell, reverse):
    layer, params = RecurrentLayer(cell, H, reverse=reverse), make_params(cell)
    at = 3
    total = lambda x: layer.apply({"params": params}, x)[0][:, at].sum()  # noqa: E731
    seen = np.abs(jax.jit(jax.grad(total))(random(B, T, D))).sum((0, 2)) > 0
    assert seen.tolist() == [(t >= at) if reverse else (t <= at) for t in range(T)]


def test_a_bidirectional_layer_sees_both_sides():
    model, params = make_stack()
    total = lambda x: run_stack(model, params, x, None)[0][:, 3].sum()  # noqa: E731
    assert (np.abs(jax.grad(total)(random(B, T, D))).sum((0, 2)) > 0).all()


def test_a_row_s_place_in_the_batch_does_not_matter():
    model, params = make_stack()
    x, order = random(B, T, D), jnp.array([2, 0, 1])
    moved = run_stack(model, params, x[order], LENGTHS[order])
    close(moved, jax.tree.map(lambda z: z[order], run_stack(model, params, x)))


@pytest.mark.parametrize(("layers", "variational"), [(1, False), (2, False), (2, True)])
def test_dropout_is_between_layers_and_of_one_mask_for_all_times(layers, variational):
    x = jnp.ones((B, T, H))
    model = Recurrent("relu", H, layers=layers, dropout=0.5, variational=variational)
    hands_through = {
        "input_kernel": jnp.eye(H),
        "recurrent_kernel": jnp.zeros((H, H)),
        "input_bias": jnp.zeros(H),
        "recurrent_bias": jnp.zeros(H),
    }
    params = {f"layer{i}": hands_through for i in range(1, layers + 1)}
    rngs = {"dropout": jax.random.key(1)}
    run = jax.jit(lambda: model.apply({"params": params}, x, train=True, rngs=rngs)[0])
    y = np.asarray(run())
    np.testing.assert_array_equal(run_stack(model, params, x, None)[0], x)
    assert set(np.unique(y)) == ({1.0} if layers == 1 else {0.0, 2.0})
    assert (y == y[:, :1]).all() == (layers == 1 or variational)


def test_the_kernels_start_orthogonal_gate_by_gate_and_the_forget_gate_open():
    layer = RecurrentLayer("lstm", H)
    params = jax.jit(layer.init)(jax.random.key(0), random(B, T, D))["params"]
    gates = params["recurrent_kernel"].reshape(H, 4, H).swapaxes(0, 1)
    np.testing.assert_allclose(gates @ gates.swapaxes(1, 2), np.stack([np.eye(H)] * 4), atol=1e-5)
    assert not np.allclose(gates[0], gates[1])
    np.testing.assert_array_equal(params["input_bias"].reshape(4, H).any(1), [0, 1, 0, 0])
    half = RecurrentLayer("lstm", H, param_dtype=jnp.bfloat16)
    half_params = jax.jit(half.init)(jax.random.key(0), random(B, T, D))["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(half_params)} == {jnp.dtype(jnp.bfloat16)}
    for name, kernel in half_params.items():
        np.testing.assert_array_equal(kernel, params[name].astype(jnp.bfloat16))
    marked = each_gate(lambda key, shape, dtype: jnp.ones(shape, dtype), 3)
    assert marked(jax.random.key(0), (2, 9)).shape == (2, 9)


def test_a_carry_or_lengths_that_do_not_fit_raise():
    params, x = make_params("lstm"), random(B, T, D)
    wide = initial_carry("lstm", B, H + 1)
    for carry in (wide, initial_carry("lstm", B + 1, H), initial_carry("gru", B, H)):
        with pytest.raises(ValueError, match="carry"):
            scan_layer("lstm", params, carry, x)
        with pytest.raises(ValueError, match="carry"):
            cell_step("lstm", params, carry, x[:, 0])
    fitting = initial_carry("lstm", B, H)
    check_carry("lstm", fitting, B, H)
    with pytest.raises(ValueError, match="at least one step"):
        scan_layer("lstm", params, fitting, x, chunk=0)
    model, stack = make_stack()
    with pytest.raises(ValueError, match="2 layers got a carry of 1"):
        run_stack(model, stack, x, carry=model.initial_carry(B)[:1])
