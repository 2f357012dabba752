"""Blocks and stacks: a scan is a loop, remat is none, post is post; the MLP by its formula."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.layers.attention import causal
from jaxdl.layers.block import Block, FeedForward, Stack, make_norm, unstack
from jaxdl.layers.embed import rotate

B, T, S, D, L = 2, 5, 3, 8, 2
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, D)), jnp.float32)
SOURCE = jnp.asarray(np.random.default_rng(1).normal(size=(B, S, D)), jnp.float32)
MODERN = {"norm": "rms", "activation": "swiglu", "bias": False, "normalise": True, "rotary": True}


def stack(**options):
    block = partial(Block, D, 2, 12, across=True, **options.pop("block", {}))
    return Stack(L, block, partial(make_norm, "layer"), **options)


def total(model):
    """Makes a scalar of all that a stack computes, for its value and its gradient."""

    def run(params, x, source):
        def both(model, x, source):
            sources = model.remember(source)
            seen = jnp.ones((1, T, S), bool)
            positions = jnp.arange(T)[None]
            return model(x, causal(T), positions=positions, sources=sources, source_mask=seen,
                         train=False)[0]  # fmt: skip

        y = model.apply({"params": params}, x, source, method=both)
        return (y * jnp.sin(jnp.arange(y.size).reshape(y.shape))).sum()

    return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2)))


def params_of(model, key=0):
    def both(model, x, source):
        return model(x, causal(T), positions=jnp.arange(T)[None], sources=model.remember(source),
                     source_mask=jnp.ones((1, T, S), bool), train=False)  # fmt: skip

    return jax.jit(partial(model.init, method=both))(jax.random.key(key), X, SOURCE)["params"]


def of_a_loop(stacked):
    """Takes the parameters of a scan, or their gradient, apart into those of a loop."""
    blocks = unstack(stacked["blocks"], L)
    return {"norm": stacked["norm"], **{f"blocks_{i}": b for i, b in enumerate(blocks)}}


def assert_close(a, b):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), a, b)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(MODERN, id="modern"),
        pytest.param({}, id="pre", marks=pytest.mark.slow),
        pytest.param({"post_norm": True}, id="post", marks=pytest.mark.slow),
    ],
)
def test_scan_is_the_loop_and_remat_changes_nothing(block):
    scanned = stack(scan=True, block=block)
    stacked = params_of(scanned)
    looped = of_a_loop(stacked)
    assert not np.array_equal(*(looped[f"blocks_{i}"]["mlp"]["up"]["kernel"] for i in range(2)))
    value, (of_params, *of_inputs) = total(stack(block=block))(looped, X, SOURCE)
    same, (of_stacked, *rest) = total(scanned.clone(remat=True))(stacked, X, SOURCE)
    assert_close((same, of_a_loop(of_stacked), rest), (value, of_params, of_inputs))


@pytest.mark.slow
def test_a_scan_without_remat_and_a_loop_with_it_have_the_same_gradient():
    scanned = stack(scan=True)
    stacked = params_of(scanned)
    value, (of_stacked, *rest) = total(scanned)(stacked, X, SOURCE)
    same, (of_looped, *others) = total(stack(remat=True))(of_a_loop(stacked), X, SOURCE)
    assert_close((value, of_a_loop(of_stacked), rest), (same, of_looped, others))


def test_remat_keeps_less_and_a_scan_compiles_one_block():
    long = jnp.zeros((4, 64, D))

    def temporaries(**options):
        model = Stack(4, partial(Block, D, 2, 32), **options)
        init = lambda: model.init(jax.random.key(0), long, causal(64), train=False)  # noqa: E731
        params = jax.eval_shape(init)
        run = lambda p: (model.apply(p, long, causal(64), train=True)[0] ** 2).sum()  # noqa: E731
        compiled = jax.jit(jax.grad(run)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes, len(compiled.as_text())

    plain, remat, scanned = temporaries(), temporaries(remat=True), temporaries(scan=True)
    assert remat[0] < 0.7 * plain[0]
    assert scanned[1] < 0.7 * plain[1]


def test_a_post_normalised_block_is_as_the_paper_writes_it():
    block = Block(D, 2, 12, post_norm=True)
    start = lambda: block.init_with_output(jax.random.key(0), X, causal(T), train=False)  # noqa: E731
    (y, _), variables = jax.jit(start)()

    def parts(block, x):
        x = block.attention_norm(x + block.attention(x, block.attention.remember(x), causal(T)))
        return block.mlp_norm(x + block.mlp(x))

    apart = jax.jit(lambda variables: block.apply(variables, X, method=parts))(variables)
    np.testing.assert_allclose(y, apart, atol=1e-6)
    np.testing.assert_allclose(np.asarray(y).mean(-1), 0, atol=1e-5)


def test_swiglu_is_its_formula():
    mlp = FeedForward(D, 12, "swiglu")
    params = jax.jit(mlp.init)(jax.random.key(0), X)["params"]
    x = np.asarray(X)
    weights = jax.tree.map(np.asarray, params)
    up, gate = (x @ weights[n]["kernel"] + weights[n]["bias"] for n in ("up", "gate"))
    hidden = up * gate / (1 + np.exp(-gate))
    expected = hidden @ weights["down"]["kernel"] + weights["down"]["bias"]
    np.testing.assert_allclose(mlp.apply({"params": params}, X), expected, rtol=1e-4, atol=1e-5)


def test_what_is_not_known_is_told_with_what_there_is():
    with pytest.raises(ValueError, match="no activation 'gelo'; there are relu, gelu, swiglu"):
        FeedForward(D, 12, "gelo").init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="no normalisation 'batch'; there are layer, rms"):
        inspect.unwrap(make_norm)("batch")  # checked annotations would be first to speak


def test_products_of_rotated_vectors_depend_on_their_distance_alone():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 6)), jnp.float32) for _ in range(2))
    at = lambda x, p: rotate(x, jnp.full((1, 1), p, jnp.int32))[0, 0, 0]  # noqa: E731
    near, far, other = ((at(q, 3 + o) * at(k, o)).sum() for o in (0, 50, 0))
    np.testing.assert_allclose(near, far, rtol=1e-4)
    assert abs(near - (at(q, 4) * at(k, 0)).sum()) > 1e-3
    np.testing.assert_allclose(jnp.linalg.norm(at(q, 9)), jnp.linalg.norm(q), rtol=1e-5)
    assert near == other


def test_rms_normalisation_is_its_formula():
    norm = make_norm("rms")
    params = {"scale": jnp.arange(1.0, D + 1)}
    x = np.asarray(X)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * np.arange(1, D + 1)
    np.testing.assert_allclose(norm.apply({"params": params}, X), expected, rtol=1e-5)
