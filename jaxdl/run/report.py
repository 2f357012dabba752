"""Tables and figures that more than one experiment shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdl.train.checkpoint import leaf_name
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
    rows.append(("parameters", "", sum(row[2] for row in rows)))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {count:>12,}" for a, b, count in rows]
    return "\n".join([*lines[:-1], "  " + "-" * (len(lines[0]) - 2), lines[-1]])


def new_figure(width: float, height: float, **kwargs: Any):
    """Makes a figure and its axes, drawn without a display and without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**kwargs)


def draw_learning_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws each evaluated metric over the steps: training in between, test where evaluated."""
    lines = [line for line in history if line["kind"] == "train"]
    tests = [line for line in history if line["kind"] == "evaluation"]
    names = [n for n in tests[-1] if n not in ("step", "kind") and not n.startswith("train_")]
    figure, axes = new_figure(5 * len(names), 3.6, ncols=len(names), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        axis.plot([x["step"] for x in lines if name in x], [x[name] for x in lines if name in x],
                  label="train", color="tab:gray", linewidth=1)  # fmt: skip
        axis.plot([x["step"] for x in tests], [x[name] for x in tests],
                  label="test", color="tab:blue", marker="o", markersize=3)  # fmt: skip
        axis.set(xlabel="step", ylabel=name)
        if all(x[name] > 0 for x in tests) and "loss" in name:
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path)


def draw_images(
    images: np.ndarray, titles: Sequence[str], path: Path, *, columns: int = 8, heading: str = ""
) -> None:
    """Draws a sheet of images (b h w c), in [0, 1], each under its title."""
    rows = max(-(-len(images) // columns), 1)
    figure, axes = new_figure(
        1.4 * columns, 1.6 * rows + 0.4, nrows=rows, ncols=columns, squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        shown = image[..., 0] if image.shape[-1] == 1 else image
        axis.imshow(np.clip(shown, 0, 1), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=8)
    figure.suptitle(heading, fontsize=10)
    figure.savefig(path)


def draw_confusion_matrix(matrix: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Draws counts of (row: true class, column: predicted class), shaded by the share of the row."""
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
