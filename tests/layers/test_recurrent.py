"""Recurrent layers: equations in NumPy, and the laws that hold for every cell."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn as cudnn

from jaxdl.layers import LSTMCarry, RecurrentLayer, cell_step, scan_layer
from jaxdl.layers.recurrent import CELLS, hidden, initial_carry
from jaxdl.layers.recurrent_cudnn import cudnn_serves, pack

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
