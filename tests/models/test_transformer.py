"""Laws of the causal language model, in both styles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.decode import generate, pad_prompts, prefill, row_keys
from jaxdl.layers.block import unstack
from jaxdl.losses import softmax_cross_entropy
from jaxdl.models import TransformerLM
from jaxdl.sampling import greedy
from tests.overfit import overfit
from tests.reach import assert_reach, reach

B, T, V, LIMIT = 2, 7, 13, 10
TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, V, (B, T)), jnp.int32)


def make(style, **options):
    sizes = {"width": 16, "layers": 2, "heads": 4, "limit": LIMIT}
    return TransformerLM(V, style=style, **{**sizes, **options})


def fill(model, scale=0.3):
    """Fills the parameters at random: some start at zero, where every law would hold."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, train=False))["params"]
    rng = np.random.default_rng(3)
    draw = lambda s: jnp.asarray(scale * rng.normal(size=s.shape), s.dtype)  # noqa: E731
    return jax.tree.map(draw, shapes)


SLOW = [pytest.param(style, marks=pytest.mark.slow) for style in ("modern", "grouped")]
MANY_PROGRAMS = pytest.mark.parametrize("network", ["gpt2", *SLOW], indirect=True)


@pytest.fixture(scope="module", params=["gpt2", "grouped", SLOW[0]])
def network(request):
    grouped = request.param == "grouped"
    model = make("modern", kv_heads=2) if grouped else make(request.param)
    params = fill(model)
    forward = lambda p, t, s=None: model.apply({"params": p}, t, None, s, train=False)[0]  # noqa: E731
    return model, params, jax.jit(forward)


def test_no_rows_have_no_logits(network):
    model, params, forward = network
    assert forward(params, TOKENS[:0]).shape == (0, T, model.vocabulary)


def test_cached_is_full_token_by_token_and_read_at_once(network):
    model, params, forward = network
    full = forward(params, TOKENS)
    carry, step = model.initial_carry(B), jax.jit(model.step)
    for t in range(T):
        carry, logits = step(params, carry, TOKENS[:, t])
        np.testing.assert_allclose(logits, full[:, t], rtol=1e-4, atol=1e-5)
    lengths = jnp.array([4, T], jnp.int32)
    ragged = jnp.where(jnp.arange(T)[None] < lengths[:, None], TOKENS, 0)
    carry, last = jax.jit(model.read)(params, model.initial_carry(B), ragged, lengths)
    np.testing.assert_allclose(last, full[jnp.arange(B), lengths - 1], rtol=1e-4, atol=1e-5)
    carry, logits = step(params, carry, TOKENS[:, 4])
    np.testing.assert_allclose(logits[0], full[0, 4], rtol=1e-4, atol=1e-5)


@MANY_PROGRAMS
def test_reading_at_once_is_what_prefill_does_token_by_token(network):
    model, params, _ = network
    lengths = jnp.array([3, 6], jnp.int32)
    step = jax.tree_util.Partial(model.step, params)
    slow, of_slow = jax.jit(prefill)(step, model.initial_carry(B), TOKENS, lengths)
    fast, of_fast = jax.jit(model.read)(params, model.initial_carry(B), TOKENS, lengths)
    np.testing.assert_allclose(of_fast, of_slow, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(fast.count, slow.count)
    after = [jax.jit(model.step)(params, c, TOKENS[:, 0])[1] for c in (slow, fast)]
    np.testing.assert_allclose(*after, rtol=1e-4, atol=1e-5)


@MANY_PROGRAMS
def test_a_text_longer_than_the_limit_is_read_from_its_last_tokens(network):
    model, params, forward = network
    text = np.random.default_rng(1).integers(1, V, (B, 23), np.int32)
    carry, step, half = model.initial_carry(B), jax.jit(model.step), LIMIT // 2
    begin = 0
    for t in range(text.shape[1]):
        carry, logits = step(params, carry, text[:, t])
        if t - begin == LIMIT:  # full: all but the last half are forgotten
            begin = t - half
        seen = np.pad(text[:, begin : t + 1], ((0, 0), (0, LIMIT - (t + 1 - begin))))
        expected = np.asarray(forward(params, seen))[:, t - begin]
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    carry, at = model.initial_carry(B), 0
    extend = jax.jit(model.extend)
    for size in (5, 3, 5, 4):
        carry, logits = extend(params, carry, text[:, at : at + size])
        at += size
    begin = 13 - half  # the first 13 filled 10 places and were forgotten, but for the last half
    np.testing.assert_allclose(logits, forward(params, text[:, begin:17])[:, -4:], rtol=1e-4,
                               atol=1e-5)  # fmt: skip
    with pytest.raises(ValueError, match="6 tokens are more than the 5"):
        model.extend(params, carry, jnp.asarray(text[:, :6]))


def test_a_token_feels_what_came_before_it_in_its_segment_and_nothing_else(network):
    model, params, _ = network
    before = np.tri(T, dtype=bool)
    (felt,) = reach(model, params, TOKENS)
    assert_reach(felt, np.broadcast_to(before, (B, T, T)))
    segments = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 2, 2, 0]], np.int32)
    (felt,) = reach(model, params, TOKENS, None, jnp.asarray(segments))
    assert_reach(felt, before & (segments[:, :, None] == segments[:, None]))


def test_a_packed_row_gives_what_its_texts_give_alone(network):
    _, params, forward = network
    segments = jnp.array([[1, 1, 1, 2, 2, 3, 0], [1, 2, 2, 2, 2, 0, 0]], jnp.int32)
    packed = np.asarray(forward(params, TOKENS, segments))
    for row in range(B):
        for segment in range(1, int(segments[row].max()) + 1):
            here = np.asarray(segments[row] == segment)
            alone = forward(params, TOKENS[row][here][None])[0]
            np.testing.assert_allclose(packed[row][here], alone, rtol=1e-4, atol=1e-5)


@MANY_PROGRAMS
def test_a_ragged_batch_writes_what_its_rows_write_alone(network):
    model, params, _ = network
    prompts = [np.arange(1, 4), np.arange(5, 11), np.array([2])]
    step = jax.tree_util.Partial(model.step, params)
    read = jax.tree_util.Partial(model.read, params)

    def write(prompts, **more):
        tokens, lengths = pad_prompts(prompts, multiple=6)
        keys = row_keys(jax.random.key(0), len(prompts))
        carry = model.initial_carry(len(prompts))
        return generate(step, carry, tokens, lengths, keys, sampler=greedy, limit=9, **more).tokens

    together = np.asarray(write(prompts, read=read))
    np.testing.assert_array_equal(together, write(prompts))
    for row, prompt in zip(together, prompts, strict=True):
        np.testing.assert_array_equal(row, write([prompt], read=read)[0])


@pytest.mark.parametrize("style", ["gpt2", SLOW[0]])
def test_scanned_layers_compute_what_a_loop_does_with_a_cache_too(style):
    scanned, looped = make(style, scan=True), make(style)
    params = fill(scanned)
    blocks = unstack(params["decoder"]["blocks"], 2)
    decoder = {"norm": params["decoder"]["norm"]} | {f"blocks_{i}": b for i, b in enumerate(blocks)}
    loose = {**params, "decoder": decoder}
    one = jax.jit(lambda p: scanned.apply({"params": p}, TOKENS, train=False)[0])(params)
    two = jax.jit(lambda p: looped.apply({"params": p}, TOKENS, train=False)[0])(loose)
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    lengths = jnp.array([3, 5], jnp.int32)
    carries = [jax.jit(m.read)(p, m.initial_carry(B), TOKENS, lengths)[0]
               for m, p in ((scanned, params), (looped, loose))]  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *carries)


@pytest.mark.parametrize("style", ["gpt2", "modern"])
def test_one_batch_is_overfitted_within_100_steps(style):
    model = make(style)
    params = jax.jit(lambda: model.init(jax.random.key(0), TOKENS, train=False)["params"])()

    def loss(params):
        # The first tokens of the rows are not the same, so all that follows can be known.
        logits, _ = model.apply({"params": params}, TOKENS[:, :-1], train=True)
        return softmax_cross_entropy(logits, TOKENS[:, 1:]).mean()

    _, losses = overfit(loss, params)
    assert losses[0] > 2
    assert losses[-1] < 0.02


def test_gpt2_has_as_many_parameters_as_the_original():
    """124,439,808: of GPT-2's smallest, as its authors count it."""
    model = TransformerLM(50257, width=768, layers=12, heads=12, limit=1024)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, train=False))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 124_439_808


def test_what_does_not_fit_is_told():
    init = lambda model, x: jax.eval_shape(  # noqa: E731
        lambda: model.init(jax.random.key(0), x, train=False)
    )
    model = make("gpt2")
    with pytest.raises(ValueError, match="11 tokens are more than the 10"):
        init(model, jnp.ones((1, 11), jnp.int32))
    with pytest.raises(ValueError, match="16 does not split over 3 heads"):
        init(make("gpt2", heads=3), TOKENS)
    for m in (3, 0):
        with pytest.raises(ValueError, match=f"4 heads do not share {m}"):
            init(make("modern", kv_heads=m), TOKENS)
        with pytest.raises(ValueError, match=f"4 heads do not share {m}"):
            make("modern", kv_heads=m).initial_carry(B)
    with pytest.raises(ValueError, match="no style 'llama'; there are gpt2, modern"):
        init(make("llama"), TOKENS)
    with pytest.raises(ValueError, match="a limit is 2 tokens at least, got 1"):
        init(make("gpt2", limit=1), TOKENS[:, :1])
    with pytest.raises(ValueError, match="segments are for rows that begin here"):
        model.apply({"params": fill(model)}, TOKENS, model.initial_carry(B), TOKENS, train=False)


def test_dropout_acts_in_training_alone():
    model = make("gpt2", dropout=0.5)
    params = fill(model)
    run = jax.jit(
        lambda model, train, key: model.apply(
            {"params": params}, TOKENS, train=train, rngs={"dropout": key}
        )[0],
        static_argnums=(0, 1),
    )
    one, two = jax.random.split(jax.random.key(1))
    np.testing.assert_array_equal(run(model, False, one), run(make("gpt2"), True, one))
    noisy = [run(model, True, key) for key in (one, two)]
    assert np.abs(noisy[0] - noisy[1]).max() > 1e-3
