"""Where attention looks: weights of every layer and head, drawn."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdl.data.tokenizers import ByteTokenizer
from jaxdl.models import TransformerLM
from jaxdl.run.attention_maps import draw_self_attention, self_attention, shown


@pytest.mark.parametrize("scan", [False, True])
def test_every_layer_and_head_looks_back_and_its_weights_sum_to_one(scan, tmp_path):
    tokenizer = ByteTokenizer()
    model = TransformerLM(tokenizer.size, width=8, layers=3, heads=2, limit=12, scan=scan)
    init = jax.jit(partial(model.init, train=False))
    params = init(jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]
    weights = np.asarray(self_attention(model, params, jnp.asarray(tokenizer.encode("if x:"))))
    assert weights.shape == (3, 2, 5, 5)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert not np.triu(weights, 1).any()
    assert np.ptp(weights[:, :, -1], axis=0).max() > 0  # layers differ
    draw_self_attention(model, params, tokenizer, "cost: $5\n日", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] > 100


def test_pieces_are_shown_as_text_and_not_as_formulas():
    assert shown("$\n") == r"\$↵"
