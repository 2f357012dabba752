"""Attention and transformers carried from PyTorch compute, and learn, what PyTorch does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.errors import UserError
from jaxdl.interop import torch_transformer as interop
from jaxdl.interop.stacks import scanned
from jaxdl.layers.attention import Attention, causal
from jaxdl.layers.block import Block, Stack, make_norm
from jaxdl.models import EncoderDecoder

B, T, S, D, HEADS, HIDDEN = 3, 7, 5, 12, 3, 20
LAYERS = {"encoder": 1, "decoder": 2}
# PyTorch's padding is true where ours is false; some of every row is left to look at.
SOURCE_PADDED = np.arange(S)[None] >= np.array([[5], [3], [4]])
TARGET_PADDED = np.arange(T)[None] >= np.array([[6], [7], [4]])
CAUSAL = np.asarray(causal(T))[0]
ARBITRARY = np.random.default_rng(5).random((B, T, T)) < 0.4
ARBITRARY |= np.eye(T, dtype=bool)
MASKS = {  # seen [#b t t], and what PyTorch is told: true where nothing is seen
    "none": (np.ones((1, T, T), bool), {}),
    "causal": (CAUSAL[None], {"attn_mask": ~CAUSAL}),
    "padding": (~TARGET_PADDED[:, None], {"key_padding_mask": TARGET_PADDED}),
    "both": (
        CAUSAL[None] & ~TARGET_PADDED[:, None],
        {"attn_mask": ~CAUSAL, "key_padding_mask": TARGET_PADDED},
    ),
    "rows": (ARBITRARY, {"attn_mask": np.repeat(~ARBITRARY, HEADS, axis=0)}),
}


def close(a, b, tolerance=1e-5):
    """Demands max |a - b| <= tolerance * max |b|."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def filled(torch, module):
    """Draws every parameter at random: biases start at zero, scales at one, where laws hold."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return module


def gradients_close(ours, module):
    """Demands PyTorch's gradients, in PyTorch's tensors: the bias of keys alone has none in truth.

    It moves all scores of a query alike, so what either side computes of it is rounding.
    """
    theirs = {name: p.grad for name, p in module.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        close(ours[name], gradient)


@pytest.mark.parametrize(
    ("mask", "bias"), [*((mask, True) for mask in MASKS), ("rows", False)]
)  # fmt: skip
def test_attention_to_itself_is_that_of_pytorch(mask, bias):
    seen, told = MASKS[mask]
    torch = pytest.importorskip("torch")
    module = torch.nn.MultiheadAttention(D, HEADS, bias=bias, batch_first=True)
    module, x = filled(torch, module), torch.randn(B, T, D, requires_grad=True)
    told = {name: torch.tensor(value) for name, value in told.items()}
    y, weights = module(x, x, x, **told, average_attn_weights=False)
    past = torch.randn(B, T, D)
    (y * past).sum().backward()
    compare(module, (x,), (y, weights), past, seen=seen, bias=bias)


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "whole"])
def test_attention_to_another_sequence_is_that_of_pytorch(padded):
    torch = pytest.importorskip("torch")
    module = filled(torch, torch.nn.MultiheadAttention(D, HEADS, batch_first=True))
    x, source = (torch.randn(B, n, D, requires_grad=True) for n in (T, S))
    padding = SOURCE_PADDED if padded else np.zeros((B, S), bool)
    told = {"key_padding_mask": torch.tensor(padding)} if padded else {}
    y, weights = module(x, source, source, **told, average_attn_weights=False)
    past = torch.randn(B, T, D)
    (y * past).sum().backward()
    compare(module, (x, source), (y, weights), past, seen=~padding[:, None], bias=True)


def compare(module, inputs, outputs, past, *, seen, bias):
    """Demands the outputs, the sown weights, and all gradients of sum(y past) to be PyTorch's."""
    model = Attention(D, HEADS, bias=bias)
    params = interop.attention_from_torch(module.state_dict())
    past = jnp.asarray(past.numpy())

    def attend(model, x, source=None):
        memory = model.remember(x if source is None else source)
        mask = np.broadcast_to(seen, (len(seen), T, seen.shape[2]))
        return model(x, memory, jnp.asarray(mask))

    def total(params, *inputs):
        y, sown = model.apply({"params": params}, *inputs, method=attend, mutable="intermediates")
        return (y * past).sum(), (y, sown["intermediates"]["weights"][0])

    arrays = [jnp.asarray(x.detach().numpy()) for x in inputs]
    run = jax.jit(jax.grad(total, argnums=tuple(range(len(arrays) + 1)), has_aux=True))
    (of_params, *of_inputs), ours = run(params, *arrays)
    for a, b in zip(ours, outputs, strict=True):
        close(a, b.detach())
    for a, x in zip(of_inputs, inputs, strict=True):
        close(a, x.grad)
    gradients_close(interop.attention_to_torch(of_params), module)


def torch_transformer(torch, *, post_norm, activation, bias):
    gelu = lambda x: torch.nn.functional.gelu(x, approximate="tanh")  # noqa: E731
    return filled(torch, torch.nn.Transformer(
        D, HEADS, LAYERS["encoder"], LAYERS["decoder"], HIDDEN, dropout=0.0, batch_first=True,
        activation=gelu if activation == "gelu" else activation, norm_first=not post_norm,
        bias=bias,
    ))  # fmt: skip


def stacks(*, post_norm, activation, bias):
    return {
        side: Stack(
            layers,
            lambda side=side: Block(
                D, HEADS, HIDDEN, post_norm=post_norm, activation=activation, bias=bias,
                across=side == "decoder",
            ),
            lambda: make_norm("layer", bias=bias),
        )
        for side, layers in LAYERS.items()
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize(
    ("post_norm", "activation", "bias"),
    [(False, "relu", True), (True, "relu", True), (False, "gelu", False)],
)
def test_a_transformer_computes_and_learns_as_in_pytorch(post_norm, activation, bias):
    torch = pytest.importorskip("torch")
    options = {"post_norm": post_norm, "activation": activation, "bias": bias}
    module = torch_transformer(torch, **options)
    source, x = (torch.randn(B, n, D, requires_grad=True) for n in (S, T))
    masks = {"src_key_padding_mask": SOURCE_PADDED, "memory_key_padding_mask": SOURCE_PADDED}
    masks |= {"tgt_mask": ~CAUSAL, "tgt_key_padding_mask": TARGET_PADDED}
    y = module(source, x, **{name: torch.tensor(mask) for name, mask in masks.items()})
    past = torch.randn(B, T, D)
    (y * past).sum().backward()

    sides = stacks(**options)
    params = interop.transformer_from_torch(module.state_dict())
    heard = jnp.broadcast_to(~SOURCE_PADDED[:, None], (B, S, S))
    across = jnp.broadcast_to(~SOURCE_PADDED[:, None], (B, T, S))
    said = jnp.asarray(CAUSAL[None] & ~TARGET_PADDED[:, None])

    def decode(stack, x, memory):
        return stack(x, said, sources=stack.remember(memory), source_mask=across, train=True)[0]

    def total(params, source, x):
        memory, _ = sides["encoder"].apply({"params": params["encoder"]}, source, heard, train=True)
        y = sides["decoder"].apply({"params": params["decoder"]}, x, memory, method=decode)
        return (y * past.numpy()).sum(), y

    inputs = [jnp.asarray(z.detach().numpy()) for z in (source, x)]
    run = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    (of_params, *of_inputs), ours = run(params, *inputs)
    close(ours, y.detach())
    for a, z in zip(of_inputs, (source, x), strict=True):
        close(a, z.grad)
    gradients_close(interop.transformer_to_torch(of_params), module)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
def test_weights_come_back_bit_for_bit_from_a_loop_and_from_a_scan():
    torch = pytest.importorskip("torch")
    module = torch_transformer(torch, post_norm=False, activation="relu", bias=True)
    attention = torch.nn.MultiheadAttention(D, HEADS)
    for network, there, back in [
        (attention, interop.attention_from_torch, interop.attention_to_torch),
        (module.encoder, interop.stack_from_torch, interop.stack_to_torch),
        (module.decoder, interop.stack_from_torch, interop.stack_to_torch),
        (module, interop.transformer_from_torch, interop.transformer_to_torch),
    ]:
        state = network.state_dict()
        params = there(state)
        scans = scanned(params) if network is not module else jax.tree.map(
            scanned, params, is_leaf=lambda tree: "norm" in tree
        )  # fmt: skip
        for tree in (params, scans):
            again = back(tree, tensors=True)
            assert again.keys() == state.keys()
            assert all(torch.equal(again[name], state[name]) for name in state)
        network.load_state_dict(again)


def test_a_stack_without_a_normalisation_on_top_has_none():
    torch = pytest.importorskip("torch")
    layer = torch.nn.TransformerEncoderLayer(D, HEADS, HIDDEN)
    network = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    assert interop.stack_from_torch(network.state_dict()).keys() == {"blocks_0", "blocks_1"}


def blank(model, *inputs, **options):
    """Makes parameters in the shapes of a model's, every number another one."""
    init = lambda: model.init(jax.random.key(0), *inputs, **options)["params"]  # noqa: E731
    rng = np.random.default_rng(0)
    draw = lambda x: rng.normal(size=x.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, jax.eval_shape(init))


def both_sides():
    tokens = jnp.ones((1, 2), jnp.int32)
    params = blank(EncoderDecoder(11, D, 2, HEADS, HIDDEN), tokens, tokens, train=False)
    return {side: params[side] for side in ("encoder", "decoder")}


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_an_encoder_decoder_has_goes_there_and_back_without_pytorch():
    params = both_sides()
    state = interop.transformer_to_torch(params)
    assert state["decoder.layers.1.multihead_attn.in_proj_weight"].shape == (3 * D, D)
    assert state["encoder.layers.0.linear1.weight"].shape == (HIDDEN, D)
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in state.values())
    back = interop.transformer_from_torch(state)
    same(back, params)
    back["encoder"]["blocks_0"]["attention"]["query"]["bias"][:] = 7
    assert not (state["encoder.layers.0.self_attn.in_proj_bias"] == 7).any()


def test_what_does_not_fit_is_told_by_its_name():
    good = interop.transformer_to_torch(both_sides())
    attention = {
        name.removeprefix("encoder.layers.0.self_attn."): array
        for name, array in good.items()
        if name.startswith("encoder.layers.0.self_attn.")
    }
    one, wide = np.zeros(D, np.float32), np.zeros((D, D), np.float32)
    for name, wrong, message in [
        ("in_proj_bias", None, "in_proj_bias is missing"),
        ("in_proj_weight", wide, r"in_proj_weight has shape \[12, 12\], expected \[36, 12\]"),
        ("bias_k", one.reshape(1, 1, D), "bias_k is unknown"),
        ("q_proj_weight", wide, r"q_proj_weight is unknown: .*\(kdim, vdim\)"),
    ]:
        told(interop.attention_from_torch, attention | {name: wrong}, message)
    for name, wrong, message in [
        ("encoder.layers.1.norm2.bias", None, "encoder.layers.1.norm2.bias is missing"),
        ("decoder.layers.1.linear1.weight", wide, "decoder.layers.1.linear1.weight has shape"),
        ("encoder.layers.0.multihead_attn.in_proj_bias", one, "multihead_attn.in_proj_bias is unk"),
        ("encoder.layers.0.norm1.weight", None, "encoder.layers.0.norm1.weight is missing"),
        ("encoder.layers.0.linear1.weight", np.float32(1), r"linear1.weight has shape \[\], "),
        ("embed.weight", wide, "embed.weight is unknown"),
    ]:
        told(interop.transformer_from_torch, good | {name: wrong}, message)

    bare = {name: array for name, array in good.items() if not name.startswith("decoder.norm.")}
    told(interop.transformer_from_torch, bare, "decoder.norm.weight is missing")


def test_what_pytorch_does_not_have_is_told_by_its_name():
    x, mask = jnp.ones((1, 2, D)), causal(2)
    attend = lambda model, x: model(x, model.remember(x), mask)  # noqa: E731
    shared = blank(Attention(D, HEADS, kv_heads=1), x, method=attend)
    told(interop.attention_to_torch, shared, r"key.kernel has shape \[12, 4\]")
    normal = blank(Attention(D, HEADS, normalise=True), x, method=attend)
    told(interop.attention_to_torch, normal, "key_norm.scale is unknown")
    gated = blank(Stack(1, lambda: Block(D, HEADS, 4, activation="swiglu")), x, mask, train=False)
    told(interop.stack_to_torch, gated, "blocks_0.mlp.gate.bias is unknown")
    embedded = {**both_sides(), "embed": {"embedding": np.ones((11, D), np.float32)}}
    told(interop.transformer_to_torch, embedded, "embed.embedding is unknown")


def told(carry, arrays, message):
    """Demands one line that says so; an array that is None is left out."""
    with pytest.raises(UserError, match=message) as error:
        carry({name: array for name, array in arrays.items() if array is not None})
    assert "\n" not in str(error.value)
