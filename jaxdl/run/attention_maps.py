"""Where attention looks, as figures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdl.data.codec import Tokenizer
from jaxdl.models import TransformerLM
from jaxdl.run.report import new_figure
from jaxdl.types import Params


@partial(jax.jit, static_argnames="model")
def self_attention(
    model: TransformerLM, params: Params, tokens: Int[Array, " t"]
) -> Float[Array, "l n t s"]:
    """Returns the weights of every layer and head of a language model over a text."""
    _, sown = model.apply({"params": params}, tokens[None], train=False, mutable=["intermediates"])
    found: Any = sown["intermediates"]["decoder"]
    if model.scan:
        return found["blocks"]["attention"]["weights"][0][:, 0]
    layers = (found[f"blocks_{i}"]["attention"]["weights"][0][0] for i in range(model.layers))
    return jnp.stack(list(layers))


def draw_self_attention(
    model: TransformerLM, params: Params, tokenizer: Tokenizer, text: str, path: Path
) -> None:
    """Draws, for each layer and head, where each token of a short text looks back to."""
    tokens = tokenizer.encode(text)[: min(32, model.limit)].tolist()
    weights = np.asarray(self_attention(model, params, jnp.asarray(tokens, jnp.int32)))
    pieces = [tokenizer.decode([token]) for token in tokens]
    layers, heads = weights.shape[:2]
    figure, axes = new_figure(
        2.2 * heads + 0.6, 2.2 * layers + 0.6, nrows=layers, ncols=heads, squeeze=False
    )
    for layer, row in enumerate(axes):
        for head, axis in enumerate(row):
            below, beside = layer == layers - 1, head == 0
            draw_map(axis, pieces if beside else None, pieces if below else None,
                     weights[layer, head])  # fmt: skip
            if layer == 0:
                axis.set_title(f"head {head + 1}", fontsize=8)
    figure.suptitle(
        "attention over held-out text, a layer a row (row: token that looks, column: where to)",
        fontsize=9,
    )
    save(figure, path)


def draw_map(
    axis: Any,
    rows: Sequence[str] | None,
    columns: Sequence[str] | None,
    weights: Float[np.ndarray, "t s"],
) -> None:
    """Draws weights as shades, with the pieces of text that they stand for, where given."""
    axis.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axis.set(xticks=[], yticks=[])
    if columns is not None:
        axis.set_xticks(range(len(columns)), map(shown, columns), rotation=90, fontsize=6)
    if rows is not None:
        axis.set_yticks(range(len(rows)), map(shown, rows), fontsize=6)


def shown(piece: str) -> str:
    """Returns a piece of text as a figure can show it."""
    return piece.replace("$", r"\$").replace("\n", "↵")


def save(figure: Any, path: Path) -> None:
    """Writes a figure whose text may be in any script."""
    with warnings.catch_warnings():
        # The font at hand has no Chinese, Japanese or Korean: there a box is drawn.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path)
