"""Laws of the rules: each parameter is split once, evenly, and nothing is left out in silence."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxdl.errors import UserError
from jaxdl.models import EncoderDecoder, TransformerLM
from jaxdl.train.rules import TRANSFORMER, follow, fully_shard, split_parameters, without
from jaxdl.train.state import leaf_name

SHAPES = {
    "block/attention/query/kernel": (10, 4, 6),
    "block/attention/query/bias": (4, 6),
    "block/attention/out/kernel": (4, 6, 10),
    "block/attention/out/bias": (10,),
    "block/up/kernel": (10, 16),
    "block/up/bias": (16,),
    "block/down/kernel": (16, 10),
    "block/down/bias": (10,),
    "block/norm/scale": (10,),
    "embed/embedding": (22, 10),
}


def sizes(data=1, fsdp=1, tensor=1):
    return {"data": data, "fsdp": fsdp, "tensor": tensor}


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((6, 8), 1),  # the largest
        ((8, 6), 0),
        ((8, 8), 1),  # of equal ones the last
        ((4, 9), 0),  # the largest that divides
        ((3, 3, 6, 4), 2),
        ((7, 9), None),  # none does
        ((2, 4), None),  # too small
        ((), None),
    ],
)
def test_fsdp_splits_the_largest_axis_that_divides(shape, axis):
    spec = fully_shard(shape, P(), sizes(fsdp=2), large=20)
    assert [i for i, name in enumerate(spec) if name] == ([] if axis is None else [axis])


def test_what_is_large_is_given_in_elements():
    shape = (4, 8)
    assert any(fully_shard(shape, P(), sizes(fsdp=2), large=32))
    assert not any(fully_shard(shape, P(), sizes(fsdp=2), large=33))


def test_without_an_axis_of_that_name_nothing_is_split():
    mesh = sizes(data=8)
    assert set(split_parameters(SHAPES, TRANSFORMER, mesh, large=1).values()) == {P()}


def test_a_block_of_a_transformer_is_split_by_heads_and_hidden_units():
    """The first product by its output, the second by its input: one sum over devices a block."""
    found = split_parameters(SHAPES, TRANSFORMER, sizes(data=2, tensor=2), large=10**6)
    assert {path: tuple(spec) for path, spec in found.items() if any(spec)} == {
        "block/attention/query/kernel": (None, "tensor"),
        "block/attention/query/bias": ("tensor",),
        "block/attention/out/kernel": ("tensor",),
        "block/up/kernel": (None, "tensor"),
        "block/up/bias": ("tensor",),
        "block/down/kernel": ("tensor",),
    }


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    ("model", "sides"),
    [
        (TransformerLM(22, width=12, layers=4, heads=2, limit=8), 1),
        (TransformerLM(22, width=12, layers=4, heads=2, limit=8, style="modern"), 1),
        (EncoderDecoder(22, width=12, layers=4, heads=2), 2),
    ],
    ids=["gpt2", "modern", "encoder-decoder"],
)
def test_both_transformers_are_split_by_heads_and_hidden_units_and_never_by_layers(
    model, sides, scan
):
    model, tokens = model.clone(scan=scan), [jnp.ones((1, 8), jnp.int32)] * sides
    init = lambda: model.init(jax.random.key(0), *tokens, train=False)  # noqa: E731
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(init)["params"])
    shapes = {leaf_name(path): leaf.shape for path, leaf in leaves}
    found = split_parameters(shapes, TRANSFORMER, sizes(tensor=2))
    layers = (None,) if scan else ()
    for path, spec in found.items():
        layer, name = path.split("/")[-2:]
        if layer in ("query", "key", "value", "up", "gate"):
            assert tuple(spec) == (*layers, *[None] * (name == "kernel"), "tensor"), path
        elif layer in ("out", "down") and name == "kernel":
            assert tuple(spec) == (*layers, "tensor"), path
        else:
            assert spec == P(), path
    assert sum(any(spec) for spec in found.values()) >= 6 * (1 if scan else 4) * sides


@pytest.mark.parametrize("fsdp", [1, 2])
@pytest.mark.parametrize("tensor", [1, 2])
def test_rules_and_fsdp_never_split_an_axis_twice_and_always_evenly(fsdp, tensor):
    mesh = sizes(fsdp=fsdp, tensor=tensor)
    for path, spec in split_parameters(SHAPES, TRANSFORMER, mesh, large=40).items():
        names = [axis for axis in spec if axis]
        assert len(names) == len(set(names))
        assert all(
            length % mesh[axis] == 0
            for length, axis in zip(SHAPES[path], spec, strict=False)
            if axis
        )
        assert ("fsdp" in names) == (fsdp == 2 and math.prod(SHAPES[path]) >= 40)


def test_the_first_rule_that_matches_decides():
    rules = (("query/kernel", P("tensor")), ("kernel", P(None, "tensor")))
    found = split_parameters(SHAPES, rules, sizes(tensor=2))
    assert found["block/attention/query/kernel"] == P("tensor")
    assert found["block/down/kernel"] == P(None, "tensor")
    assert found["block/up/bias"] == P()


def test_a_rule_may_use_several_axes_of_the_mesh_and_takes_fsdp_for_itself():
    rules = (("embedding", P(("tensor", "fsdp"))), ("up/kernel", P("fsdp")))
    shapes = {"embedding": (24, 10), "up/kernel": (10, 16)}
    found = split_parameters(shapes, rules, sizes(fsdp=2, tensor=3), large=1)
    assert found == {"embedding": P(("tensor", "fsdp")), "up/kernel": P("fsdp")}
    found = split_parameters(shapes, rules, sizes(fsdp=2), large=1)
    assert found == {"embedding": P("fsdp"), "up/kernel": P("fsdp")}


@pytest.mark.parametrize("pattern", ["qerry/kernel", "down/kernel"])
def test_a_rule_that_decides_nothing_is_told(pattern):
    """Also one that only matches what an earlier one has decided on, and on one device."""
    with pytest.raises(ValueError, match=f"{pattern}.* decides on none of block/attention/query"):
        split_parameters(SHAPES, (*TRANSFORMER, (pattern, P("tensor"))), sizes())


def test_what_a_rule_cannot_split_evenly_is_told():
    with pytest.raises(UserError, match=r"query/kernel \(10, 4, 6\).*axis of 4.*tensor=3"):
        split_parameters(SHAPES, TRANSFORMER, sizes(tensor=3))
    with pytest.raises(ValueError, match=r"splits block/up/bias along .* it has 1 axes"):
        split_parameters(SHAPES, (("up", P(None, "tensor")),), sizes(tensor=2))


def test_a_slot_follows_the_longest_path_that_its_own_ends_with():
    shapes = {"kernel": (3, 4), "conv/kernel": (3, 4), "dense/kernel": (5, 6)}
    assert follow("opt_state/0/mu/conv/kernel", (3, 4), shapes) == "conv/kernel"
    assert follow("ema/kernel", (3, 4), shapes) == "kernel"
    assert follow("opt_state/0/mu/preconv/kernel", (3, 4), shapes) == "kernel"
    # What has another shape, as a factored second moment has, is not split as the parameter is.
    assert follow("opt_state/0/v_row/dense/kernel", (5,), shapes) is None
    assert follow("opt_state/0/count", (), shapes) is None


def test_an_axis_of_the_mesh_is_left_out_of_a_split():
    assert without((("data", "fsdp"), None, "fsdp", "tensor"), "fsdp") == [
        "data", None, None, "tensor",
    ]  # fmt: skip
