"""Recurrent layers: equations in NumPy, and the laws that hold for every cell."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn as cudnn

from jaxdl.layers import LSTMCarry, Recurrent, RecurrentLayer, cell_step, scan_layer
from jaxdl.layers.recurrent import CELLS, check_carry, hidden, initial_carry
from jaxdl.layers.recurrent_cudnn import cudnn_serves, pack
from jaxdl.layers.recurrent_stack import each_gate

B, T, D, H = 3, 5, 5, 4
LENGTHS = jnp.array([3, 5, 1], jnp.int32)
CELL = pytest.mark.parametrize("cell", CELLS)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def make_params(cell, *, normalise=False, inputs=D, seed=1):
    """Fills every parameter at random: a bias that is zero would hide where it is added."""
    layer = RecurrentLayer(cell, H, normalise=normalise)
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros((B, T, inputs))))
    leaves, tree = jax.tree.flatten(shapes["params"])
    return tree.unflatten([0.6 * random(*s.shape, seed=seed + i) for i, s in enumerate(leaves)])


def random_carry(cell, seed=50):
    start = initial_carry(cell, B, H)
    leaves, tree = jax.tree.flatten(start)
    return tree.unflatten([random(B, H, seed=seed + i) for i in range(len(leaves))])


def close(a, b, tolerance=2e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * np.abs(y).max())


def by_loop(cell, params, carry, x):
    """The readable cell, step by step in Python."""
    outputs = []
    step = jax.jit(lambda carry, x: cell_step(cell, params, carry, x))
    for t in range(x.shape[1]):
        carry, y = step(carry, x[:, t])
        outputs.append(y)
    return carry, jnp.stack(outputs, axis=1)


def numpy_step(cell, p, carry, x):
    """The equations, by hand: one line a gate."""
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    h = carry.h if cell == "lstm" else carry
    u = x @ p["input_kernel"] + p["input_bias"]
    r = h @ p["recurrent_kernel"] + p["recurrent_bias"]
    if cell == "lstm":
        i, f, g, o = np.split(u + r, 4, -1)
        c = sigmoid(f) * carry.c + sigmoid(i) * np.tanh(g)
        return LSTMCarry(sigmoid(o) * np.tanh(c), c)
    if cell == "gru":
        (ur, uz, un), (rr, rz, rn) = np.split(u, 3, -1), np.split(r, 3, -1)
        z = sigmoid(uz + rz)
        return (1 - z) * np.tanh(un + sigmoid(ur + rr) * rn) + z * h
    return np.tanh(u + r) if cell == "tanh" else np.maximum(u + r, 0)


@CELL
def test_a_cell_is_its_equations(cell):
    params, carry, x = make_params(cell), random_carry(cell), random(B, D)
    after, y = cell_step(cell, params, carry, x)
    wide = jax.tree.map(lambda z: np.asarray(z, np.float64), (params, carry, x))
    close(after, numpy_step(cell, *wide))
    np.testing.assert_array_equal(y, hidden(after))


KINDS = [
    *((cell, False) for cell in CELLS),
    ("lstm", True),
    pytest.param("gru", True, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("cell", "normalise"), KINDS)
def test_the_scan_is_the_python_loop_and_so_is_its_gradient(cell, normalise):
    params, carry, x = make_params(cell, normalise=normalise), random_carry(cell), random(B, 3, D)
    weight = random(B, 3, H, seed=9)

    def objective(run):
        def total(*inputs):
            last, y = run(cell, *inputs)
            return (y * weight).sum() + sum((leaf**2).sum() for leaf in jax.tree.leaves(last))

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(params, carry, x)

    fast = objective(scan_layer)
    close(fast, objective(by_loop), 1e-5)
    chunked = partial(scan_layer, chunk=2)  # which leaves a rest
    close(objective(chunked), fast, 1e-5)


@CELL
@pytest.mark.parametrize("reverse", [False, True])
def test_a_ragged_batch_is_its_rows_one_by_one_and_so_is_its_gradient(cell, reverse):
    params, carry, x = make_params(cell), random_carry(cell), random(B, T, D)
    weight = random(B, T, H, seed=9)

    def one_by_one(params, carry, x):
        rows = []
        for i, length in enumerate(LENGTHS.tolist()):
            row = x[i : i + 1, :length]
            start = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], carry)
            last, y = by_loop(cell, params, start, row[:, ::-1] if reverse else row)
            y = y[:, ::-1] if reverse else y
            rows.append((last, jnp.pad(y, [(0, 0), (0, T - length), (0, 0)])))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)

    def objective(run):
        def total(*inputs):
            last, y = run(*inputs)
            return (y * weight).sum() + sum((leaf**2).sum() for leaf in jax.tree.leaves(last))

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(params, carry, x)

    ragged = partial(scan_layer, cell, lengths=LENGTHS, reverse=reverse)
    close(objective(ragged), objective(one_by_one), 1e-5)


@pytest.mark.parametrize("normalise", [False, True])
def test_normalisation_is_of_each_gate_and_of_the_memory(normalise):
    """A scaled and shifted projection changes nothing where it is normalised, else it does."""
    params = make_params("lstm", normalise=normalise)
    carry, x = random_carry("lstm"), random(B, D)
    gate = slice(H, 2 * H)  # one gate alone: its units are normalised together
    scaled = params | {"input_kernel": params["input_kernel"].at[:, gate].multiply(3.0)}
    after, _ = cell_step("lstm", params, carry, x)
    other, _ = cell_step("lstm", scaled, carry, x)
    assert np.allclose(after.c, other.c, atol=1e-3) == normalise


@CELL
def test_chunks_of_a_stream_with_their_carry_are_the_whole(cell):
    params, x = make_params(cell), random(B, T, D)
    start = initial_carry(cell, B, H)
    run = jax.jit(partial(scan_layer, cell))
    last, y = run(params, start, x)
    middle, first = run(params, start, x[:, :3])
    end, second = run(params, middle, x[:, 3:])
    close((end, jnp.concatenate([first, second], axis=1)), (last, y))


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


def test_rematerialising_takes_less_memory():
    """By XLA's own count of what the gradient needs beside its arguments and its result."""
    params, carry = make_params("lstm"), initial_carry("lstm", B, H)

    def temporary(chunk):
        def total(params, x):
            return scan_layer("lstm", params, carry, x, chunk=chunk)[1].sum()

        x = jax.ShapeDtypeStruct((B, 256, D), jnp.float32)
        compiled = jax.jit(jax.grad(total)).lower(params, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(16) < temporary(None) / 2


def test_what_cudnn_reads_is_what_the_layer_holds():
    """JAX's own reading of cuDNN's weights, and its plain LSTM on them, without a GPU."""
    params, x = make_params("lstm"), random(B, T, D)
    weights = pack(params)
    assert weights.shape == (cudnn.get_num_params_in_lstm(D, H, 1, False),)
    unpacked = cudnn.unpack_lstm_weights(weights, D, H, 1, False)
    names = ("input_kernel", "recurrent_kernel", "input_bias", "recurrent_bias")
    for part, name in zip(unpacked, names, strict=True):
        np.testing.assert_array_equal(part[0], params[name].T)
    zeros = jnp.zeros((1, B, H))
    y, h, c = cudnn.lstm_ref(
        x, zeros, zeros, *unpacked, seq_lengths=jnp.full(B, T), input_size=D, hidden_size=H,
        num_layers=1, dropout=0.0, bidirectional=False,
    )  # fmt: skip
    last, ours = jax.jit(partial(scan_layer, "lstm"))(params, initial_carry("lstm", B, H), x)
    close((ours, last), (y, LSTMCarry(h[0], c[0])), 1e-5)
    assert not cudnn_serves(RecurrentLayer("lstm", H), x, None)  # there is no GPU here
