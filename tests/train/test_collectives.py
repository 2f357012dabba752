"""What a program communicates, read from the forms in which XLA writes it."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxdl.train.collectives import Traffic, count_collectives
from jaxdl.train.sharding import make_mesh

# Instructions as XLA prints them on CPU, GPU and TPU: (text, kind, bytes).
FORMS = [
    ("%r = f32[3,5]{1,0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%a", "all-reduce", 60),
    (
        "ROOT %r = (f32[7]{0}, bf16[], /*index=2*/pred[3]{0}) all-reduce(%x, %y, %z),"
        " replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'b'}, to_apply=%a",
        "all-reduce",
        28 + 2 + 3,
    ),
    ("%r = f32[6]{0} all-reduce-start(%x), replica_groups={{0,1},{2,3}}", "all-reduce", 24),
    ("%g = f32[8,5]{1,0} all-gather(%x), replica_groups=[1,4]<=[4]", "all-gather", 160),
    (
        "%g = (f32[2,5]{1,0}, f32[8,5]{1,0}) all-gather-start(%x), replica_groups=[1,4]<=[4]",
        "all-gather",
        160,
    ),
    (
        "%g = ((f32[2]{0}, u8[3]{0}), (f32[8]{0}, u8[12]{0})) all-gather-start(%x, %y)",
        "all-gather",
        44,
    ),
    ("%s = s32[2]{0} reduce-scatter(%x), replica_groups=[2,4]<=[8]", "reduce-scatter", 32),
    (
        "%s = f32[2]{0} reduce-scatter(%x), replica_groups=mesh['a'=8] {'a':(1)4}",
        "reduce-scatter",
        32,
    ),
    (
        "%p = (f32[9]{0}, f32[9]{0}, u32[], u32[]) collective-permute-start(%x)",
        "collective-permute",
        36,
    ),
    ("%t = (f32[1,5]{1,0}, f32[1,5]{1,0}) all-to-all(%x, %y)", "all-to-all", 40),
]


@pytest.mark.parametrize(("text", "kind", "size"), FORMS)
def test_each_form_is_read(text, kind, size):
    assert count_collectives(text) == {kind: Traffic(1, size)}


@pytest.mark.parametrize(
    "text",
    [
        "%d = f32[6]{0} all-reduce-done(%r)",
        "%x = f32[6]{0} add(%all-reduce.1, %y)",
        "%g = f32[8,5]{1,0} all-gather(%x), replica_groups=[4,1]<=[4]",
        "%g = f32[8,5]{1,0} all-gather(%x), replica_groups={{0},{1}}, dimensions={0}",
        "%g = f32[8]{0} all-gather(%x), replica_groups=mesh['a'=1,'b'=4] {'a'}, dimensions={0}",
    ],
)
def test_what_sends_nothing_is_not_counted(text):
    assert count_collectives(text) == {}


def test_kinds_add_up():
    text = "\n".join(form for form, _, _ in FORMS)
    want = {}
    for _, kind, size in FORMS:
        want[kind] = want.get(kind, Traffic(0, 0)) + Traffic(1, size)
    assert count_collectives(text) == want


def test_a_compiled_program_is_read():
    def exchange(x):
        whole = jax.lax.all_gather(x, "data")
        return jax.lax.ppermute(jax.lax.psum(whole.sum(0), "data"), "data", [(0, 1), (1, 0)])

    spread = jax.shard_map(
        exchange, mesh=make_mesh({"data": 2}), in_specs=P("data"), out_specs=P("data")
    )
    found = count_collectives(jax.jit(spread).lower(jnp.zeros((6, 5))).compile().as_text())
    part = 3 * 5 * 4
    assert found == {
        "all-gather": Traffic(1, 2 * part),
        "all-reduce": Traffic(1, part),
        "collective-permute": Traffic(1, part),
    }
