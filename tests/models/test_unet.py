"""The U-Net: zero at first, all that it is told matters, rows are apart, and sizes may be any."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl.interop.safetensors import load_model, save_model
from jaxdl.layers import double, fold, halve, unfold
from jaxdl.layers.image_block import Text
from jaxdl.models import UNet
from tests.parameters import random_params

B, H, W, C, S, E, CLASSES = 3, 8, 12, 2, 5, 7, 6
NET = UNet(
    C, width=8, multipliers=(1, 2), blocks=1, attention=(False, True), heads=2, classes=CLASSES,
    text_width=E, groups=4,
)  # fmt: skip
SHALLOW = NET.clone(multipliers=(1,), attention=(True,))  # one level: soon compiled
RNG = np.random.default_rng(0)
X, WORDS, READ = (
    jnp.asarray(RNG.normal(size=shape), jnp.float32)
    for shape in ((B, H, W, C), (B, S, E), (B, S, E))
)
TIME = jnp.array([3.0, 250.0, 999.0])
LABELS = jnp.array([4, 0, 2])
MASK = jnp.arange(S)[None] < jnp.array([[2], [5], [0]])  # the last row has no text
TEXT = Text(WORDS, READ, MASK)
INPUTS = X, TIME, LABELS, TEXT


@pytest.fixture(scope="module")
def params():
    return random_params(NET, *INPUTS)


@pytest.fixture(scope="module")
def run(params):
    return jax.jit(lambda *inputs: NET.apply({"params": params}, *inputs, train=False))


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_it_begins_at_zero():
    init = lambda: SHALLOW.init_with_output(jax.random.key(0), *INPUTS, train=False)  # noqa: E731
    y, _ = jax.jit(init)()
    np.testing.assert_array_equal(y, jnp.zeros((B, H, W, C)))


def test_all_that_it_is_told_matters_and_what_is_masked_does_not(params):
    def total(x, time, words, read, params):
        text = Text(words, read, MASK)
        y = NET.apply({"params": params}, x, time, LABELS, text, train=False)
        return (y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)).sum()

    of_x, of_time, *of_text, of_params = jax.jit(jax.grad(total, argnums=range(5)))(
        X, TIME, WORDS, READ, params
    )
    assert np.asarray(of_x).all()
    assert np.asarray(of_time).all()
    for of_word in (np.abs(np.asarray(part)).sum(-1) for part in of_text):
        assert (of_word[np.asarray(MASK)] > 1e-6).all()
        assert not of_word[~np.asarray(MASK)].any()
    *_, of_label = (g for p, g in jax.tree_util.tree_leaves_with_path(of_params)
                    if "label" in str(p))  # fmt: skip
    told = np.abs(np.asarray(of_label)).sum(-1) > 1e-6
    np.testing.assert_array_equal(np.flatnonzero(told), sorted(LABELS.tolist()))
    # No layer is left out; keys have no use for a bias, which a softmax does not see.
    for path, leaf in jax.tree_util.tree_leaves_with_path(of_params):
        name = jax.tree_util.keystr(path)
        assert "['key']['bias']" in name or np.abs(leaf).max() > 1e-6, name


def test_what_was_pushed_last_on_the_way_down_is_popped_first_on_the_way_up():
    net = NET.clone(blocks=2)
    params = random_params(net, *INPUTS)

    def unrolled(net, x, *others):
        given = net.conditions(*others)
        through = lambda block, *parts: block(jnp.concatenate(parts, -1), given, train=False)  # noqa: E731
        a = through(net.down[0][0], net.stem(x))
        b = through(net.down[0][1], a)
        c = through(net.down[1][0], net.halved[0](halve(b)))
        d = through(net.down[1][1], c)
        y = through(net.middle[1], through(net.middle[0], d))
        y = through(net.up[1][1], through(net.up[1][0], y, d), c)
        y = net.doubled[0](double(y))
        y = through(net.up[0][1], through(net.up[0][0], y, b), a)
        return net.out(net.norm(y))

    y = jax.jit(lambda: net.apply({"params": params}, *INPUTS, train=False))()
    expected = jax.jit(lambda: net.apply({"params": params}, *INPUTS, method=unrolled))()
    assert_close(y, expected)


def test_a_row_depends_on_itself_alone(run):
    inputs = jax.tree.map(np.array, INPUTS)
    y = np.asarray(run(*inputs))
    others = jax.tree.map(np.copy, inputs)
    for place in (0, 2):
        for part in (others[0], others[3].words, others[3].read):
            part[place] = RNG.normal(size=part[place].shape)
    others[1][0], others[2][2], others[3].seen[2] = 7, 1, True
    strange = run(*others)
    assert_close(strange[1], y[1])
    assert np.abs(strange[0] - y[0]).max() > 1e-2
    # And not on its place, nor on the size of the batch.
    assert_close(run(*jax.tree.map(lambda v: v[::-1], inputs))[::-1], y)
    assert_close(run(*jax.tree.map(lambda v: v[:2], inputs)), y[:2])


def test_no_label_and_no_text_are_what_is_left_out():
    params = random_params(SHALLOW, *INPUTS)
    run = jax.jit(lambda *inputs: SHALLOW.apply({"params": params}, *inputs, train=False))
    nothing, none = TEXT._replace(seen=jnp.zeros_like(MASK)), jnp.full(B, CLASSES)
    y = run(X, TIME, none, nothing)
    assert_close(run(X, TIME), y)
    assert_close(run(X, TIME, LABELS), run(X, TIME, LABELS, nothing))
    assert np.abs(run(X, TIME, LABELS) - y).max() > 1e-2
    seen = run(X, TIME, none, TEXT._replace(seen=jnp.ones_like(MASK)))
    assert np.abs(seen - y).max() > 1e-2


@pytest.mark.parametrize(("h", "w", "c"), [(4, 8, 1), (12, 4, 5)])
def test_any_channels_and_any_size_that_halves(h, w, c):
    net = UNet(c, width=6, multipliers=(1, 1, 2), blocks=1, attention=(False, False, True), heads=3)
    x, time = jnp.zeros((2, h, w, c)) + 0.5, jnp.array([0.5, -2.0])
    params = random_params(net, x, time)
    y = jax.jit(lambda: net.apply({"params": params}, x, time, train=False))()
    assert y.shape == x.shape
    assert np.isfinite(y).all()
    assert np.abs(y[0] - y[1]).max() > 1e-3  # fractions of time and negative ones are told apart
    with pytest.raises(ValueError, match=f"{h}x{w - 2} do not halve evenly.*multiples of 4"):
        net.init(jax.random.key(0), x[:, :, : w - 2], time, train=False)


def test_a_network_of_patches_is_that_of_the_folded_image():
    patched = SHALLOW.clone(patch=2)
    plain = SHALLOW.clone(channels=4 * C)
    params = random_params(patched, *INPUTS)
    y = jax.jit(lambda: patched.apply({"params": params}, *INPUTS, train=False))()
    folded = fold(X, 2), *INPUTS[1:]
    z = jax.jit(lambda: plain.apply({"params": params}, *folded, train=False))()
    assert y.shape == X.shape
    assert_close(y, unfold(z, 2))
    with pytest.raises(ValueError, match=r"8x11 do not halve evenly.*multiples of 2"):
        jax.eval_shape(lambda: patched.init(jax.random.key(0), X[:, :, :11], TIME, train=False))


@pytest.mark.parametrize(
    ("plain", "inputs"),
    [
        (SHALLOW.clone(text_width=None, attention=(False,)), INPUTS[:3]),
        pytest.param(NET, INPUTS, marks=pytest.mark.slow),
    ],
    ids=["of labels", "of texts"],
)
def test_remat_changes_nothing(plain, inputs):
    params = random_params(plain, *inputs)

    def gradient(remat):
        net = plain.clone(remat=remat, dropout=0.3)

        def loss(params, x):
            told = {"train": True, "rngs": {"dropout": jax.random.key(5)}}
            return (net.apply({"params": params}, x, *inputs[1:], **told) ** 2).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, X)

    (value, gradients), (same, again) = gradient(False), gradient(True)
    np.testing.assert_allclose(same, value, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6 * largest)
    jax.tree.map(close, again, gradients)


# Without it jaxlib 0.10 on CPU finds that what is computed again was computed before.
BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def test_remat_keeps_less_and_computes_it_again():
    x, time = jnp.zeros((4, 16, 16, 1)), jnp.zeros(4)

    def cost(remat):
        net = UNet(1, width=8, multipliers=(1,), blocks=3, attention=(False,), remat=remat)
        params = jax.eval_shape(lambda: net.init(jax.random.key(0), x, time, train=False))
        run = lambda p: (net.apply(p, x, time, train=True) ** 2).sum()  # noqa: E731
        compiled = jax.jit(jax.grad(run)).lower(params).compile(compiler_options=BARRIERS)
        return compiled.memory_analysis().temp_size_in_bytes, compiled.cost_analysis()["flops"]

    (held, flops), (less, more) = cost(False), cost(True)
    assert less < 0.75 * held
    assert 1.1 * flops < more < 4 / 3 * flops


def test_bfloat16_computes_and_float32_comes_out(params, run):
    net = NET.clone(dtype=jnp.bfloat16)
    y = jax.jit(lambda: net.apply({"params": params}, *INPUTS, train=False))()
    assert y.dtype == jnp.float32
    exact = run(*INPUTS)
    gap = np.abs(y - exact).max() / np.abs(exact).max()
    assert 1e-4 < gap < 0.1  # it is coarser, so it was computed in bfloat16, and it is close
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), *INPUTS, train=False))["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_the_parameters_are_as_many_as_the_formula_says():
    width, multipliers, blocks, classes, e = 8, (1, 3, 2), 2, 5, 7
    attention = (False, True, True)
    net = UNet(3, width=width, multipliers=multipliers, blocks=blocks, attention=attention,
               classes=classes, text_width=e)  # fmt: skip
    x, time = jnp.zeros((1, 4, 4, 3)), jnp.zeros(1)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x, time, train=False))["params"]

    d, widths = 4 * width, [width * m for m in multipliers]
    dense = lambda i, o: (i + 1) * o  # noqa: E731
    conv = lambda i, o: (9 * i + 1) * o  # noqa: E731
    residual = lambda i, o: (  # noqa: E731
        2 * i + conv(i, o) + dense(d, 2 * o) + 2 * o + conv(o, o) + (i != o) * dense(i, o)
    )
    attend = lambda w: 2 * w + 4 * dense(w, w)  # noqa: E731
    heed = lambda i, o: dense(i, e) + e * 2 * o  # noqa: E731
    block = lambda i, o, a: residual(i, o) + a * (attend(o) + heed(i, o))  # noqa: E731

    total = dense(width, d) + dense(d, d) + (classes + 1) * d  # conditions
    total += conv(3, width) + 2 * width + conv(width, 3)  # in and out
    into = width
    for level, (w, attends) in enumerate(zip(widths, attention, strict=True)):
        total += block(into, w, attends) + (blocks - 1) * block(w, w, attends)
        total += blocks * block(2 * w, w, attends)
        if level + 1 < len(widths):
            total += conv(w, w) + conv(widths[level + 1], w)
        into = w
    total += block(into, into, attention[-1]) + block(into, into, False)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == total


@pytest.mark.slow
def test_one_batch_is_denoised_within_100_steps():
    net = UNet(1, width=8, multipliers=(1, 1), blocks=1, attention=(False, False))
    clean = jnp.asarray(RNG.choice([-1.0, 1.0], size=(4, 4, 6, 1)), jnp.float32)
    noise = jnp.asarray(RNG.normal(size=clean.shape), jnp.float32)
    time = jnp.array([100.0, 300.0, 500.0, 700.0])
    sigma = (time / 1000)[:, None, None, None]
    x = (1 - sigma) * clean + sigma * noise
    params = jax.jit(lambda: net.init(jax.random.key(1), x, time, train=False)["params"])()
    tx = optax.adam(5e-3)

    @jax.jit
    def step(params, state):
        def objective(params):
            return ((net.apply({"params": params}, x, time, train=True) - noise) ** 2).mean()

        loss, gradient = jax.value_and_grad(objective)(params)
        updates, state = tx.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = tx.init(params), []
    for _ in range(100):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[0] > 0.5
    assert losses[-1] < 0.02


def test_its_folder_gives_back_what_was_saved(tmp_path, params):
    save_model(tmp_path, NET, params, about={"classes": ["a", "b"]})
    loaded = load_model(tmp_path)
    assert loaded.model == NET
    assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


@pytest.mark.parametrize(
    ("changes", "inputs", "told"),
    [
        ({"attention": (True,)}, INPUTS, "2 multipliers, but attention for 1 levels"),
        (
            {"attention": (False, False)},
            INPUTS,
            "a text steers levels with attention, and none has any",
        ),
        ({"classes": None}, INPUTS, "without classes was given labels"),
        ({"text_width": None}, INPUTS, "without text_width was given a text"),
        (
            {"text_width": E + 2},
            INPUTS,
            f"words of {E} and {E} for a U-Net with text_width {E + 2}",
        ),
        ({"heads": 3}, INPUTS, "does not split over 3 heads"),
    ],
)
def test_what_does_not_fit_is_told(changes, inputs, told):
    with pytest.raises(ValueError, match=told):
        jax.eval_shape(lambda: NET.clone(**changes).init(jax.random.key(0), *inputs, train=False))
