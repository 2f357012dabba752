"""Tables and figures that more than one experiment shows."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdl.train.state import leaf_name
from jaxdl.types import Params


def parameter_table(params: Params) -> str:
    """Lists every layer's arrays and its number of parameters, and their sum."""
    layers: dict[str, tuple[list[str], int]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        layer, _, name = leaf_name(path).rpartition("/")
        shapes, count = layers.get(layer, ([], 0))
        shapes.append(f"{name} {'x'.join(map(str, leaf.shape)) or 'scalar'}")
        layers[layer] = (shapes, count + leaf.size)
    rows = [(layer, ", ".join(shapes), count) for layer, (shapes, count) in layers.items()]
    rows.append(("parameters", "", sum(count for _, count in layers.values())))
    wide, wider = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    lines = [f"  {a:<{wide}}  {b:<{wider}}  {count:>12,}" for a, b, count in rows]
    return "\n".join([*lines[:-1], "  " + "-" * (len(lines[0]) - 2), lines[-1]])


def new_figure(width: float, height: float, **kwargs: Any):
    """Makes a figure and its axes, drawn without a display and without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**kwargs)


def draw_learning_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws each evaluated metric over the steps: training in between, test where evaluated.

    A number that was not finite, which the log has as null, is a gap.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    lines = [line for line in history if line["kind"] == "train"]
    tests = [line for line in history if line["kind"] == "evaluation"]
    names = [n for n in tests[-1] if n not in ("step", "kind") and not n.startswith("train_")]
    figure, axes = new_figure(5 * len(names), 3.6, ncols=len(names), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        styles = {"color": "tab:gray", "linewidth": 1}, {"color": "tab:blue", "marker": "."}
        for kind, where, style in zip(("train", "test"), (lines, tests), styles, strict=True):
            points = [(x["step"], x[name]) for x in where if name in x]
            if points:
                values = np.array([v for _, v in points], float)  # None becomes NaN
                axis.plot([step for step, _ in points], values, label=kind, **style)
        axis.set(xlabel="step", ylabel=name)
        if "loss" in name and all((x[name] or 0) > 0 for x in tests):
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")  # 0.02, not 2 x 10^-2
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path)


def draw_images(
    images: np.ndarray, titles: Sequence[str], path: Path, *, columns: int = 8, heading: str = ""
) -> None:
    """Draws a sheet of images (b h w c), in [0, 1], each under its title."""
    columns = max(min(columns, len(images)), 4)
    rows = max(-(-len(images) // columns), 1)
    figure, axes = new_figure(
        1.4 * columns, 1.6 * rows + 0.4, nrows=rows, ncols=columns, squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        shown = image[..., 0] if image.shape[-1] == 1 else image
        axis.imshow(np.clip(shown, 0, 1), cmap="gray", vmin=0, vmax=1)
        axis.set_title(textwrap.fill(title, 22), fontsize=8)
    figure.suptitle(heading, fontsize=10)
    figure.savefig(path)


def draw_confusion_matrix(matrix: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Draws counts of (row: true class, column: predicted class), shaded by its row's share."""
    n = len(classes)
    side = max(4.0, 0.5 * n + 1.5)
    figure, axis = new_figure(side + 0.6, side)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if n <= 30:
        for i, j in np.ndindex(matrix.shape):
            if matrix[i, j]:
                color = "white" if shares[i, j] > 0.5 else "black"
                axis.text(
                    j, i, int(matrix[i, j]), ha="center", va="center", color=color, fontsize=8
                )
    axis.set_xticks(range(n), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
    axis.set_yticks(range(n), classes)
    axis.set(xlabel="predicted", ylabel="true")
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the true class")
    figure.savefig(path)
