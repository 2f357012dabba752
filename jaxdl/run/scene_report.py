"""How many generated scenes are as their captions say: which digit, in which colour, and where.

Nobody looks but the project's own classifier of single digits, trained on real ones alone. Every
number comes with what pictures of real digits, held out, get in the same way.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdl.data.scenes import COLORS, COLUMNS, ROWS, Scene, Thing
from jaxdl.run.judge import Judge

INK = 0.05  # mean brightness from which a cell holds something
GREY = 0.25  # saturation below which ink has no colour
NO_COLOR = -1


class Looked(NamedTuple):
    """What is to be seen in each cell of each picture, cells row by row."""

    digits: Int[np.ndarray, "b cells"]
    colors: Int[np.ndarray, "b cells"]  # as in `COLORS`, or NO_COLOR
    ink: Bool[np.ndarray, "b cells"]


def look(judge: Judge, images: Float[np.ndarray, "b h w rgb"]) -> Looked:
    """Cuts pictures in [0, 1] into cells, and asks of each what is in it.

    The digit is what the judge takes the cell for, as grey as its brightest channel; the colour is
    the nearest in hue to the mean of its pixels.
    """
    b, h, w, _ = images.shape
    side = h // ROWS, w // COLUMNS
    cells = images.reshape(b, ROWS, side[0], COLUMNS, side[1], 3).swapaxes(2, 3)
    cells = cells.reshape(-1, *side, 3)
    grey = cells.max(-1, keepdims=True)
    found = judge.look(grey).classes, nearest_color(cells.mean((1, 2))), grey.mean((1, 2, 3)) > INK
    return Looked(*(part.reshape(b, ROWS * COLUMNS) for part in found))


def nearest_color(rgb: Float[np.ndarray, "b rgb"]) -> Int[np.ndarray, " b"]:
    """Finds the colour of the nearest hue; NO_COLOR for what is nearly grey."""
    r, g, b = rgb.T
    hue = np.degrees(np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b))
    nearest = np.rint(hue / 60).astype(int) % len(COLORS)
    most, least = rgb.max(-1), rgb.min(-1)
    return np.where(most - least < GREY * np.maximum(most, 1e-6), NO_COLOR, nearest)


class Score(NamedTuple):
    """What is right of one scene."""

    digits: int
    colors: int
    position: bool
    things: int


def judge_scene(
    scene: Scene, digits: Int[np.ndarray, " cells"], colors: Int[np.ndarray, " cells"],
    ink: Bool[np.ndarray, " cells"],
) -> Score:  # fmt: skip
    """Compares a picture with its caption.

    There has to be ink in as many cells as there are things, and lying as the caption says; nothing
    is right otherwise. Digits and colours are compared where the caption has them. The position
    is right where, besides, no other order of the things would fit what is seen better: two that
    have changed places are wrong, however well drawn.
    """
    things = scene.things
    found = {divmod(int(cell), COLUMNS) for cell in np.flatnonzero(ink)}
    cells = next((p for p in scene.arrangement.placements if set(p) == found), None)
    if cells is None:
        return Score(0, 0, False, len(things))
    at = [row * COLUMNS + column for row, column in cells]
    seen = [Thing(int(digits[i]), int(colors[i])) for i in at]

    def agree(order: Sequence[Thing]) -> tuple[int, int]:
        pairs = list(zip(order, seen, strict=True))
        right = (sum(a[part] == b[part] for a, b in pairs) for part in (0, 1))
        return tuple(right)  # pyright: ignore[reportReturnType]

    best = max(sum(agree(order)) for order in itertools.permutations(things))
    right = agree(things)
    return Score(*right, sum(right) == best, len(things))


def accuracies(
    judge: Judge, scenes: Sequence[Scene], images: Float[np.ndarray, "b h w rgb"]
) -> dict[str, float]:
    """Counts what is right, over all things and over all scenes; `scene` is all of it at once."""
    looked = zip(*look(judge, images), strict=True)
    scores = [judge_scene(scene, *row) for scene, row in zip(scenes, looked, strict=True)]
    things = sum(score.things for score in scores)
    whole = [s.position and s.digits == s.colors == s.things for s in scores]
    return {
        "digit_accuracy": sum(score.digits for score in scores) / things,
        "color_accuracy": sum(score.colors for score in scores) / things,
        "position_accuracy": float(np.mean([score.position for score in scores])),
        "scene_accuracy": float(np.mean(whole)),
    }


def by_count(
    judge: Judge, scenes: Sequence[Scene], images: Float[np.ndarray, "b h w rgb"]
) -> dict[str, Any]:
    """Counts the same for scenes of one, two and three things apart."""
    counts = np.array([len(scene.things) for scene in scenes])

    def of(n: int) -> dict[str, float]:
        return accuracies(judge, [s for s in scenes if len(s.things) == n], images[counts == n])

    return {str(n): of(n) for n in sorted({*counts.tolist()})}
