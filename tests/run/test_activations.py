import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdl.models import RecurrentLM
from jaxdl.run.activations import draw_activations, slow_units, unit_activations
from tests.parameters import random_params


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_activations_are_what_the_network_carries(cell):
    model = RecurrentLM(vocabulary=7, width=5, layers=2, cell=cell)
    tokens = jnp.asarray([3, 1, 6, 2])
    params = random_params(model, tokens[None])
    found = unit_activations(model, params, tokens)
    assert found.shape == (4, 5)
    read = jax.jit(lambda text: model.apply({"params": params}, text, train=False)[1])
    for t in (1, 3):
        carry = read(tokens[None, : t + 1])
        h = carry[-1].h if cell == "lstm" else carry[-1]
        np.testing.assert_allclose(found[t], h[0], rtol=1e-5, atol=1e-6)


def test_slow_units_come_first():
    t = np.arange(40)
    units = np.stack([0.01 * np.sin(t / 9), 2 * np.sin(t / 9), (-1.0) ** t, np.sin(t / 3)], 1)
    assert slow_units(units, 2).tolist() == [1, 3]


def test_a_text_of_any_shape_is_drawn(tmp_path):
    pieces = ["if", " ", "a$b", "\n", "    ", "x" * 30, "\n\n", "é"]
    values = np.random.default_rng(0).normal(size=(len(pieces), 2))
    draw_activations(pieces, values, tmp_path / "a.png", columns=20)
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 50
