"""What single units of a recurrent network do, drawn over the text that they read.

After Karpathy, Johnson and Fei-Fei 2016, Visualizing and understanding recurrent networks
(arXiv:1506.02078), who found units that count the length of a line, or are on within quotes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdl.data.codec import Tokenizer
from jaxdl.layers.recurrent import hidden
from jaxdl.models import RecurrentLM
from jaxdl.run.report import new_figure
from jaxdl.types import Params


@partial(jax.jit, static_argnames="model")
def unit_activations(
    model: RecurrentLM, params: Params, tokens: Int[Array, " t"]
) -> Float[Array, "t h"]:
    """Returns h of the last layer after each token, read one by one from a carry of zeros."""

    def read(carry, token):
        carry, _ = model.step(params, carry, token[None])
        return carry, hidden(carry[-1])[0]

    return jax.lax.scan(read, model.initial_carry(1), tokens)[1]


def slow_units(activations: Float[np.ndarray, "t h"], count: int) -> Int[np.ndarray, " n"]:
    """Picks the units that vary much and change seldom: the largest lag-1 autocovariance."""
    centred = activations - activations.mean(0)
    covariance = (centred[1:] * centred[:-1]).mean(0)
    return np.argsort(-covariance, kind="stable")[:count]


def draw_held_out(
    model: RecurrentLM, params: Params, tokenizer: Tokenizer, text: str, path: Path
) -> None:
    """Draws what three slow units of the last layer do over the beginning of a text."""
    tokens = tokenizer.encode(text)[:400]
    activations = np.asarray(unit_activations(model, params, jnp.asarray(tokens)))
    pieces = [tokenizer.decode([token]) for token in tokens.tolist()]
    draw_activations(pieces, activations[:, slow_units(activations, 3)], path)


def draw_activations(
    pieces: Sequence[str], activations: Float[np.ndarray, "t n"], path: Path, *, columns: int = 100
) -> None:
    """Draws a text once for each of n units, each piece shaded by the unit's activation.

    Blue is positive, red negative; a unit's shade is full where it is furthest from zero.
    """
    cells = [(c, row) for piece, row in zip(pieces, activations, strict=True) for c in piece]
    places, line, column = [], 0, 0
    for character, _ in cells:
        if column == columns:
            line, column = line + 1, 0
        places.append((line, column))
        line, column = (line + 1, 0) if character == "\n" else (line, column + 1)
    lines, units = places[-1][0] + 1, activations.shape[1]
    columns = 1 + max(column for _, column in places)
    width, height = max(6, 0.11 * columns + 0.5), 0.16 * lines * units + 0.8
    figure, axes = new_figure(width, height, nrows=units, squeeze=False)
    for unit, axis in enumerate(axes[:, 0]):
        shades = np.zeros((lines, columns))
        for (row, column), (_, values) in zip(places, cells, strict=True):
            shades[row, column] = values[unit]
        most = max(float(np.abs(shades).max()), 1e-6)
        axis.imshow(shades, cmap="RdBu", vmin=-most, vmax=most, aspect="auto", alpha=0.7)
        for (row, column), (character, _) in zip(places, cells, strict=True):
            if character.isprintable() and character != " ":
                style = {"ha": "center", "va": "center", "family": "monospace", "fontsize": 6}
                axis.text(column, row, character.replace("$", r"\$"), **style)
        axis.set(xticks=[], yticks=[])
    heading = "units of the last layer over held-out text (blue: positive, red: negative)"
    figure.suptitle(heading, fontsize=9)
    figure.savefig(path)
