"""Recurrent weights carried from PyTorch compute, and learn, what PyTorch does; and come back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.errors import UserError
from jaxdl.interop import torch_recurrent as interop
from jaxdl.layers import LSTMCarry, Recurrent
from jaxdl.losses import softmax_cross_entropy
from jaxdl.models import RecurrentLM

B, T, D, H = 3, 7, 5, 4
LENGTHS = [4, 7, 2]
NETWORKS = [  # cell, layers, both ways, ragged: each depth, and each with and without the others
    ("lstm", 1, False, True),
    ("lstm", 2, True, False),
    ("lstm", 3, True, True),
    ("gru", 1, True, True),
    ("gru", 2, False, False),
    ("gru", 3, True, True),
    ("tanh", 2, True, True),
    ("relu", 3, False, False),
]


def close(a, b, tolerance=1e-5):
    """Demands max |a - b| <= tolerance * max |b|."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def torch_network(cell, layers, both):
    torch = pytest.importorskip("torch")
    torch.manual_seed(layers)
    options = {"batch_first": True, "bidirectional": both}
    if cell in ("tanh", "relu"):
        return torch, torch.nn.RNN(D, H, layers, nonlinearity=cell, **options)
    return torch, {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](D, H, layers, **options)


def torch_run(torch, network, x, start, ragged):
    """Runs packed, as PyTorch wants ragged sequences; returns padded outputs, and carries."""
    if not ragged:
        return network(x, start)
    pack = torch.nn.utils.rnn.pack_padded_sequence
    packed = pack(x, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
    y, last = network(packed, start)
    return torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=T)[0], last


def to_stack(cell, tensors, layers, both):
    """Splits PyTorch's carries [layers * directions, b, h] into one a layer and direction."""
    parts = [np.asarray(z.detach()) for z in (tensors if cell == "lstm" else (tensors,))]
    flat = [
        LSTMCarry(*map(jnp.asarray, z)) if cell == "lstm" else jnp.asarray(z[0])
        for z in zip(*parts, strict=True)
    ]
    return tuple(zip(flat[::2], flat[1::2], strict=True)) if both else tuple(flat[:layers])


@pytest.mark.parametrize(("cell", "layers", "both", "ragged"), NETWORKS)
def test_outputs_carries_and_gradients_are_those_of_pytorch(cell, layers, both, ragged):
    torch, network = torch_network(cell, layers, both)
    ways = 2 if both else 1
    x = torch.randn(B, T, D, requires_grad=True)
    start = [torch.randn(layers * ways, B, H, requires_grad=True) for _ in range(2)]
    start = tuple(start) if cell == "lstm" else start[0]
    weight = torch.randn(B, T, H * ways)
    y, last = torch_run(torch, network, x, start, ragged)
    ends = last if cell == "lstm" else (last,)
    ((y * weight).sum() + sum((end**2).sum() for end in ends)).backward()

    model = Recurrent(cell, H, layers=layers, bidirectional=both)
    params = interop.recurrent_from_torch(network.state_dict())
    lengths = jnp.array(LENGTHS, jnp.int32) if ragged else None

    def total(params, x, carry):
        y, last = model.apply({"params": params}, x, carry, lengths=lengths, train=False)
        loss = (y * weight.numpy()).sum() + sum((z**2).sum() for z in jax.tree.leaves(last))
        return loss, (y, last)

    carry = to_stack(cell, start, layers, both)
    inputs = (params, jnp.asarray(x.detach().numpy()), carry)
    run = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    (of_params, of_x, of_carry), (ours, our_last) = run(*inputs)

    close(ours, y.detach())
    jax.tree.map(close, our_last, to_stack(cell, last, layers, both))
    close(of_x, x.grad)
    of_start = tuple(z.grad for z in start) if cell == "lstm" else start.grad
    jax.tree.map(close, of_carry, to_stack(cell, of_start, layers, both))
    theirs = {name: p.grad for name, p in network.named_parameters()}
    jax.tree.map(close, of_params, interop.recurrent_from_torch(theirs))


def test_weights_come_back_bit_for_bit():
    torch, network = torch_network("gru", 2, True)
    state = network.state_dict()
    back = interop.recurrent_to_torch(interop.recurrent_from_torch(state), tensors=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    network.load_state_dict(back)


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_learns_as_in_pytorch(tied):
    """Three steps of SGD: with one bias for PyTorch's two the second loss would differ."""
    torch = pytest.importorskip("torch")
    v, width = 11, 6
    torch.manual_seed(0)
    network = torch.nn.ModuleDict({
        "encoder": torch.nn.Embedding(v, width),
        "rnn": torch.nn.LSTM(width, width, 2, batch_first=True),
        "decoder": torch.nn.Linear(width, v),
    })  # fmt: skip
    if tied:
        network["decoder"].weight = network["encoder"].weight
    model = RecurrentLM(v, width=width, tied=tied)
    params = interop.recurrent_lm_from_torch(network.state_dict(), tied=tied)
    back = interop.recurrent_lm_to_torch(params, tensors=True)
    assert all(torch.equal(back[name], z) for name, z in network.state_dict().items())
    tokens = np.random.default_rng(0).integers(0, v, (B, T)).astype(np.int32)

    @jax.jit
    def step(params):
        def objective(params):
            logits, _ = model.apply({"params": params}, jnp.asarray(tokens[:, :-1]), train=True)
            return softmax_cross_entropy(logits, jnp.asarray(tokens[:, 1:])).mean()

        loss, gradient = jax.value_and_grad(objective)(params)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient), loss

    tx, index = torch.optim.SGD(network.parameters(), 0.5), torch.tensor(tokens).long()
    for _ in range(3):
        y, _ = network["rnn"](network["encoder"](index[:, :-1]))
        loss = torch.nn.functional.cross_entropy(
            network["decoder"](y).flatten(0, 1), index[:, 1:].flatten()
        )
        tx.zero_grad()
        loss.backward()
        tx.step()
        params, ours = step(params)
        close(ours, loss.detach())


def state(layers=2, width=H):
    """Makes the state dict of an LSTM, in PyTorch's shapes, without PyTorch."""
    rng, entries = np.random.default_rng(0), {}
    for i in range(layers):
        inputs = D if i == 0 else width
        shapes = {"weight_ih": (4 * width, inputs), "weight_hh": (4 * width, width)}
        shapes |= {"bias_ih": (4 * width,), "bias_hh": (4 * width,)}
        entries |= {f"{k}_l{i}": rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    return entries


def test_what_does_not_fit_is_told_by_its_name():
    good = state()
    assert interop.recurrent_from_torch(good)["layer2"]["input_kernel"].shape == (H, 4 * H)
    for name, wrong, message in [
        ("bias_hh_l1", None, "bias_hh_l1 is missing"),
        ("weight_ih_l1", np.zeros((4 * H, H + 1), np.float32), "weight_ih_l1 has shape"),
        ("weight_hr_l0", np.zeros((2, H), np.float32), "weight_hr_l0 is unknown"),
    ]:
        entries = {k: z for k, z in (good | {name: wrong}).items() if z is not None}
        with pytest.raises(UserError, match=message):
            interop.recurrent_from_torch(entries)
    output = {"encoder.weight": np.ones((11, H), np.float32)}
    output |= {f"rnn.{name}": z for name, z in (state() | state(layers=1, width=H)).items()}
    output |= {"rnn.weight_ih_l0": np.ones((4 * H, H), np.float32)}
    output |= {"decoder.weight": np.zeros((11, H), np.float32), "decoder.bias": np.ones(11)}
    with pytest.raises(UserError, match="not tied"):
        interop.recurrent_lm_from_torch(output, tied=True)
