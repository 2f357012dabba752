"""Attention against a formula in NumPy, in 16 bits and by a fused call, and positions."""

import importlib
import re
from functools import partial
from inspect import unwrap
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.layers import attention
from jaxdl.layers.attention import (
    Attention,
    KeysValues,
    attend,
    causal,
    fused,
    fused_serves,
    memory_heads,
)
from jaxdl.layers.embed import places, sinusoids


def test_attention_is_a_softmax_of_what_the_mask_leaves():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, size, 3, 4)).astype(np.float32) for size in (5, 6, 6))
    mask = rng.random((2, 5, 6)) < 0.6
    mask[..., 0] = True
    out, weights = attend(*map(jnp.asarray, (q,)), KeysValues(jnp.asarray(k), jnp.asarray(v)),
                          jnp.asarray(mask))  # fmt: skip
    for b in range(2):
        for t in range(5):
            for n in range(3):
                here = mask[b, t]
                e = np.exp(k[b, here, n] @ q[b, t, n] / 2)
                np.testing.assert_allclose(weights[b, n, t][here], e / e.sum(), rtol=1e-5)
                assert not np.asarray(weights)[b, n, t][~here].any()
                expected = e @ v[b, here, n] / e.sum()
                np.testing.assert_allclose(out[b, t, n], expected, rtol=1e-4, atol=1e-5)


def test_a_mask_by_name_is_the_array_that_it_stands_for():
    rng = np.random.default_rng(4)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 5, n, 4)), jnp.float32) for n in (4, 2, 2))
    for name, array in (("causal", causal(5)), (None, jnp.ones((1, 5, 5), bool))):
        for x, y in zip(attend(q, KeysValues(k, v), name), attend(q, KeysValues(k, v), array),
                        strict=True):  # fmt: skip
            np.testing.assert_array_equal(x, y)


def test_masks_that_mean_nothing_are_refused():
    q, k = jnp.ones((2, 5, 4, 4)), jnp.ones((2, 5, 2, 4))
    # Unwrapped: the tests check annotations, which would be first to speak.
    look = lambda mask, q=q: unwrap(attend)(q, KeysValues(k, k), mask)  # noqa: E731
    with pytest.raises(ValueError, match="no mask 'casual'; there are \"causal\", None for all"):
        look("casual")
    with pytest.raises(ValueError, match=r"a mask is boolean, .* got float32"):
        look(jnp.zeros((1, 5, 5)))  # as PyTorch adds them to scores
    for t in (1, 3):
        with pytest.raises(ValueError, match=rf'"causal" mask is for {t} keys, .* there are 5'):
            look("causal", q[:, :t])


@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 3)])
def test_nothing_attends_to_nothing(shape):
    b, t, s = shape
    q, memory = jnp.ones((b, t, 4, 4)), KeysValues(*[jnp.ones((b, s, 2, 4))] * 2)
    y, weights = attend(q, memory, None)
    assert (y.shape, weights.shape) == ((b, t, 4, 4), (b, 4, t, s))


def test_scores_and_weights_in_16_bits_are_those_of_float32():
    rng = np.random.default_rng(1)
    draw = lambda n: jnp.asarray(3 * rng.normal(size=(2, 5, n, 12)), jnp.bfloat16)  # noqa: E731
    q, k, v, g = map(draw, (4, 2, 2, 4))
    mask = jnp.ones((1, 5, 5), bool)

    def both(q, k, v, g):  # not compiled: XLA on CPU leaves out roundings
        out, back, weights = jax.vjp(lambda *x: attend(x[0], KeysValues(*x[1:]), mask), q, k, v,
                                     has_aux=True)  # fmt: skip
        return weights, (out, back(g))

    weights, results = both(q, k, v, g)
    exact, expected = both(*(x.astype(jnp.float32) for x in (q, k, v, g)))
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, exact, rtol=1e-5, atol=1e-7)
    for x, y in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        assert x.dtype == jnp.bfloat16
        np.testing.assert_allclose(x.astype(jnp.float32), y, atol=0.02 * np.abs(y).max())


def on_a_gpu(monkeypatch, version="PJRT C API cuda 12090", capability="8.0"):
    client = SimpleNamespace(platform_version=version)
    device = SimpleNamespace(client=client, compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])


def shaped(t=6, s=6, k=8, dtype=jnp.bfloat16):
    queries, keys = jnp.zeros((2, t, 4, k), dtype), jnp.zeros((2, s, 2, k), dtype)
    return queries, KeysValues(keys, keys)


def test_fused_attention_is_asked_for_what_it_serves_alone(monkeypatch):
    assert not fused_serves(*shaped(), None)  # here, on a CPU
    on_a_gpu(monkeypatch)
    for mask in (jnp.ones((2, 6, 6), bool), "causal", None):
        assert fused_serves(*shaped(), mask)
        assert fused_serves(*shaped(k=128, dtype=jnp.float16), mask)
        for unserved in ({"dtype": jnp.float32}, {"k": 12}, {"k": 136}):
            assert not fused_serves(*shaped(**unserved), mask), unserved
    assert not fused_serves(*shaped(6, 4), "causal")
    for t, s in ((5, 4), (6, 5), (5, 5)):
        for mask in (jnp.ones((2, t, s), bool), None, "causal"):
            assert not fused_serves(*shaped(t, s), mask), (t, s)
    queries, memory = shaped()
    assert not fused_serves(queries.astype(jnp.float16), memory, None)
    assert not fused_serves(queries, jax.tree.map(jnp.float32, memory), None)
    for nonsense in ("casual", jnp.zeros((2, 6, 6), queries.dtype)):
        assert not unwrap(fused_serves)(queries, memory, nonsense)
    for old in ({"capability": "7.5"}, {"version": "rocm 6.2", "capability": "gfx942"}):
        on_a_gpu(monkeypatch, **old)
        assert not fused_serves(*shaped(), None)
    on_a_gpu(monkeypatch, capability="10.0")
    assert fused_serves(*shaped(), None)


def lowered_for_a_gpu(monkeypatch, queries, memory, mask):
    """Lowers the gradient of `fused` by JAX's own rules of what cuDNN takes, without a GPU.

    Three of its inner functions ask for the GPU; another release may have them elsewhere.
    """
    rules = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(rules, "check_cudnn_version", lambda: 9_10_00)
    monkeypatch.setattr(rules, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(rules, "is_cuda_compute_capability_equal", lambda capability: False)
    total = lambda *qkv: fused(*qkv, mask).astype(jnp.float32).sum()  # noqa: E731
    traced = jax.jit(jax.grad(total, (0, 1))).trace(queries, memory)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("t", "s", "mask"),
    [(6, 6, "array"), (6, 6, "causal"), (6, 6, None), (6, 4, "array"), (2, 64, None)],
)
def test_what_fused_attention_serves_jax_lowers_with_its_gradient(monkeypatch, t, s, mask):
    on_a_gpu(monkeypatch, capability="9.0")
    queries, memory = shaped(t, s)
    seen = jnp.ones((2, t, s), bool) if mask == "array" else mask
    assert fused_serves(queries, memory, seen)
    text = lowered_for_a_gpu(monkeypatch, queries, memory, seen)
    assert re.findall("__cudnn\\$fmha\\w*Backward", text)


def test_odd_lengths_are_not_served_for_as_long_as_jax_refuses_their_gradient(monkeypatch):
    with pytest.raises(NotImplementedError, match="sequence length"):
        lowered_for_a_gpu(monkeypatch, *shaped(5, 5), None)


def test_the_fused_call_is_attention_with_the_same_mask_and_groups(monkeypatch):
    rng = np.random.default_rng(2)
    x, source = (jnp.asarray(rng.normal(size=(3, t, 16)), jnp.float32) for t in (4, 4))
    layer = Attention(16, 4, kv_heads=2)

    def attend_to(layer, x, source, mask):
        return layer(x, layer.remember(source), mask)

    masks = jnp.asarray(rng.random((3, 4, 4)) < 0.7).at[..., 0].set(True)
    params = jax.jit(partial(layer.init, method=attend_to))(jax.random.key(0), x, source, masks)
    kinds = masks, masks[:1], "causal", None
    plain = [layer.apply(params, x, source, mask, method=attend_to) for mask in kinds]
    fused = jax.nn.dot_product_attention
    calls = []

    def by_xla(*arrays, implementation, **options):
        calls.append((implementation, options["mask"] is not None, options["is_causal"]))
        return fused(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    monkeypatch.setattr(attention, "fused_serves", lambda *_: True)
    for mask, expected in zip(kinds, plain, strict=True):
        y = layer.apply(params, x, source, mask, method=attend_to)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    arrays, by_name, every = ("cudnn", True, False), ("cudnn", False, True), ("cudnn", False, False)
    assert calls == [arrays, arrays, by_name, every]
    # Whoever asks for the weights is served by what has them.
    layer.apply(params, x, source, masks, method=attend_to, mutable=["intermediates"])
    assert len(calls) == 4


@pytest.mark.parametrize("kv_heads", [-1, 0, 3, 8])
def test_heads_that_are_not_shared_evenly_are_told(kv_heads):
    with pytest.raises(ValueError, match=f"4 heads do not share {kv_heads} heads of keys"):
        memory_heads(4, kv_heads)


def test_heads_of_the_memory_are_as_many_as_asked_for_else_all():
    assert [memory_heads(4, m) for m in (None, 1, 2, 4)] == [4, 1, 2, 4]


def test_positions_are_the_waves_of_the_paper():
    waves = np.asarray(sinusoids(jnp.array([[0, 7]]), 6))
    for i in range(3):
        angle = 7 / 10_000 ** (2 * i / 6)
        np.testing.assert_allclose(waves[0, 1, [i, 3 + i]], [np.sin(angle), np.cos(angle)],
                                   rtol=1e-5)  # fmt: skip
    assert waves[0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="a width of 9 is odd"):
        sinusoids(jnp.array([[0, 7]]), 9)


def test_places_begin_anew_in_every_segment():
    segments = jnp.array([[1, 1, 2, 2, 2, 0], [1, 2, 3, 0, 0, 0]])
    assert places(segments).tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 0, 0, 1, 2]]
