"""GPT-2's weights, by name: with them jaxdl computes, and learns, what Hugging Face's does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.errors import UserError
from jaxdl.interop.stacks import scanned
from jaxdl.interop.torch_gpt2 import gpt2_from_torch, gpt2_to_torch
from jaxdl.losses import softmax_cross_entropy
from jaxdl.models import TransformerLM

B, T, V, D, LAYERS, LIMIT = 2, 7, 29, 12, 2, 10
MODEL = TransformerLM(V, width=D, layers=LAYERS, heads=3, limit=LIMIT)
TOKENS = np.random.default_rng(0).integers(0, V, (B, T + 1)).astype(np.int32)


def close(a, b, tolerance=1e-5):
    """Demands max |a - b| <= tolerance * max |b|."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def theirs():
    """Makes Hugging Face's GPT-2, every parameter drawn at random, none zero nor one."""
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = hf.GPT2Config(
        vocab_size=V, n_positions=LIMIT, n_embd=D, n_layer=LAYERS, n_head=3, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    network = hf.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return torch, network


def test_logits_and_gradients_are_those_of_hugging_face():
    torch, network = theirs()
    index = torch.tensor(TOKENS).long()
    logits = network(index[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), index[:, 1:].flatten())
    loss.backward()

    @jax.jit
    @jax.grad
    def run(params):
        ours, _ = MODEL.apply({"params": params}, jnp.asarray(TOKENS[:, :-1]), train=False)
        of_row = softmax_cross_entropy(ours, jnp.asarray(TOKENS[:, 1:]))
        return of_row.mean()

    params = gpt2_from_torch(network.state_dict())
    ours, _ = MODEL.apply({"params": params}, jnp.asarray(TOKENS[:, :-1]), train=False)
    close(ours, logits.detach())
    # In their tensors: the bias of keys alone has no gradient in truth, only rounding.
    gradients = gpt2_to_torch(run(params))
    of_theirs = {name: p.grad for name, p in network.named_parameters()}
    assert gradients.keys() == of_theirs.keys() | {"lm_head.weight"}
    for name, gradient in of_theirs.items():
        close(gradients[name], gradient)


def test_a_state_dict_comes_back_bit_for_bit():
    torch, network = theirs()
    state = network.state_dict()
    back = gpt2_to_torch(gpt2_from_torch(state), tensors=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    network.load_state_dict(back)
    inner = gpt2_from_torch(network.transformer.state_dict())  # without prefix, and head
    same(inner, gpt2_from_torch(state))


def blank():
    """Makes parameters in the shapes of the model's, every number another one."""
    init = lambda: MODEL.init(jax.random.key(0), jnp.asarray(TOKENS), train=False)  # noqa: E731
    rng = np.random.default_rng(0)
    draw = lambda x: rng.normal(size=x.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, jax.eval_shape(init)["params"])


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_parameters_go_there_and_back_from_a_loop_or_a_scan_without_pytorch():
    params = blank()
    state = gpt2_to_torch(params)
    assert state["transformer.h.1.attn.c_attn.weight"].shape == (D, 3 * D)
    assert state["transformer.h.0.mlp.c_proj.weight"].shape == (4 * D, D)
    same(gpt2_from_torch(state), params)
    again = gpt2_to_torch(params | {"decoder": scanned(params["decoder"])})
    assert again.keys() == state.keys()
    assert all(np.array_equal(again[name], state[name]) for name in state)


def test_masks_are_left_and_half_numbers_come_whole():
    state = gpt2_to_torch(blank())
    masks = {"transformer.h.0.attn.bias": np.ones((1, 1, LIMIT, LIMIT), np.uint8)}
    masks |= {"transformer.h.1.attn.masked_bias": np.float32(-1e4)}
    half = {name: array.astype(jnp.bfloat16) for name, array in state.items()}
    params = gpt2_from_torch(half | masks)
    same(params, gpt2_from_torch({name: z.astype(np.float32) for name, z in half.items()}))
    assert {array.dtype for array in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_what_does_not_fit_is_told_by_its_name():
    state = gpt2_to_torch(blank())
    for name, wrong, message in [
        (
            "lm_head.weight",
            np.zeros((V, D), np.float32),
            "lm_head.weight differs from transformer.w",
        ),
        ("lm_head.weight", np.zeros((V, 2), np.float32), r"lm_head.weight has shape \[29, 2\]"),
        ("transformer.h.1.ln_2.bias", None, "transformer.h.1.ln_2.bias is missing"),
        ("transformer.wte.weight", None, "transformer.wte.weight is missing"),
        ("transformer.h.0.mlp.c_fc.weight", np.zeros((D, D), np.float32), "c_fc.weight has shape"),
        ("transformer.h.0.crossattention.c_attn.bias", np.zeros(D), "crossattention.* is unknown"),
        ("score.weight", np.zeros((2, D), np.float32), "score.weight is unknown"),
        ("transformer.ln_f.bias", np.zeros(D, np.int8), "ln_f.bias is of type int8"),
    ]:
        entries = {k: z for k, z in (state | {name: wrong}).items() if z is not None}
        with pytest.raises(UserError, match=message):
            gpt2_from_torch(entries)
    params = blank()
    del params["positions"]
    with pytest.raises(UserError, match=r"the parameters: positions\.embedding is missing"):
        gpt2_to_torch(params)
