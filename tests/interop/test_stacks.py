"""The layouts of a stack: a loop's blocks and a scan's are the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.interop.stacks import looped, scanned
from jaxdl.layers.attention import causal
from jaxdl.layers.block import Block, Stack, make_norm

T, D = 2, 6


def drawn(*, scan):
    """Makes parameters of twelve blocks: in the order of their names 10 would come before 2."""
    stack = Stack(12, lambda: Block(D, 2, 4), lambda: make_norm("layer"), scan)
    init = lambda: stack.init(jax.random.key(0), jnp.ones((1, T, D)), causal(T), train=False)  # noqa: E731
    rng = np.random.default_rng(0)
    draw = lambda x: rng.normal(size=x.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, jax.eval_shape(init)["params"])


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_scanned_stack_is_its_looped_one_in_another_layout():
    params = drawn(scan=True)
    apart = looped(params)
    assert jax.tree.structure(apart) == jax.tree.structure(drawn(scan=False))
    same(scanned(apart), params)
    for i in range(12):
        one = jax.tree.map(lambda stacked, i=i: stacked[i], params["blocks"])
        same(apart[f"blocks_{i}"], one)


def test_what_has_the_layout_already_and_what_is_no_stack_stay_as_they_are():
    stacked, apart = drawn(scan=True), drawn(scan=False)
    embedding = {"embedding": np.ones((3, D), np.float32)}
    for change, trees in (looped, (apart, embedding)), (scanned, (stacked, embedding)):
        for tree in trees:
            same(change(tree), tree)
