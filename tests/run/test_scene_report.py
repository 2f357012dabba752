"""Judging scenes: real ones are right, and each mistake costs what it should and no more."""

import numpy as np
import pytest

from jaxdl.data import digit_scenes, digits
from jaxdl.data.scenes import ARRANGEMENTS, COLORS, COLUMNS, Scene, Thing
from jaxdl.models import ReferenceCNN
from jaxdl.run.judge import Judge, Seen
from jaxdl.run.scene_report import NO_COLOR, accuracies, by_count, judge_scene, look, nearest_color

SIDE = 4
LEFT_OF = next(a for a in ARRANGEMENTS if a.words == "{} left of {}")
RED_7, BLUE_2 = Thing(7, 0), Thing(2, 4)
PAIR = Scene(LEFT_OF, (RED_7, BLUE_2), ((1, 0), (1, 1)))


class Oracle(Judge):
    """Reads the digit off the brightness of a picture, of which there are ten."""

    def look(self, images):
        classes = np.rint(images.mean((1, 2, 3)) * 20 - 2).astype(int).clip(0, 9)
        return Seen(np.eye(10)[classes], images.reshape(len(images), -1))


ORACLE = Oracle(ReferenceCNN(classes=10), {})


def draw(things):
    """Draws things by their cells, in pictures that the oracle can read."""
    canvas = np.zeros((2, SIDE, 3, SIDE, 3), np.float32)
    for (row, column), (digit, color) in things.items():
        rgb = np.array(list(COLORS.values())[color])
        canvas[row, :, column] = (digit + 2) / 20 * rgb
    return canvas.reshape(2 * SIDE, 3 * SIDE, 3)


def score(scene, things):
    return judge_scene(scene, *(part[0] for part in look(ORACLE, draw(things)[None])))


def test_every_real_picture_is_right():
    data = digit_scenes(digits(), side=8, count=1, test=60)
    scenes = [data.seen.scene(i) for i in range(60)]
    images = [draw(dict(zip(scene.cells, scene.things, strict=True))) for scene in scenes]
    assert set(accuracies(ORACLE, scenes, np.stack(images)).values()) == {1.0}
    # Ink and colour are found in the handwriting itself, too.
    real = np.stack([data.seen.picture(i) for i in range(60)]).astype(np.float32) / 255
    found = accuracies(ORACLE, scenes, real)
    assert found["color_accuracy"] == 1
    assert found["digit_accuracy"] < 0.5
    ink = look(ORACLE, real).ink
    for scene, row in zip(scenes, ink, strict=True):
        cells = {divmod(int(i), COLUMNS) for i in np.flatnonzero(row)}
        assert cells == set(scene.cells)
    parts = by_count(ORACLE, scenes, np.stack(images))
    assert list(parts) == ["1", "2", "3"]
    assert parts["2"]["scene_accuracy"] == 1


@pytest.mark.parametrize(
    ("things", "digits", "colors", "position"),
    [
        ({(1, 0): RED_7, (1, 1): BLUE_2}, 2, 2, True),
        ({(0, 1): RED_7, (0, 2): BLUE_2}, 2, 2, True),  # anywhere
        ({(1, 0): BLUE_2, (1, 1): RED_7}, 0, 0, False),  # they have changed places
        ({(1, 0): Thing(9, 0), (1, 1): BLUE_2}, 1, 2, True),
        ({(1, 0): Thing(7, 3), (1, 1): BLUE_2}, 2, 1, True),
        ({(1, 0): Thing(7, 4), (1, 1): Thing(2, 0)}, 2, 0, True),  # the colours have, alone
        ({(1, 0): Thing(9, 1), (1, 1): Thing(8, 1)}, 0, 0, True),
        ({(0, 0): RED_7, (1, 0): BLUE_2}, 0, 0, False),  # above, not left of
        ({(1, 0): RED_7, (1, 2): BLUE_2}, 0, 0, False),  # not side by side
        ({(1, 0): RED_7}, 0, 0, False),
        ({(1, 0): RED_7, (1, 1): BLUE_2, (0, 0): RED_7}, 0, 0, False),
        ({}, 0, 0, False),
    ],
)
def test_each_mistake_costs_its_own(things, digits, colors, position):
    assert score(PAIR, things) == (digits, colors, position, 2)


def test_things_that_are_alike_cannot_change_places():
    scene = PAIR._replace(things=(RED_7, RED_7))
    assert score(scene, {(1, 0): RED_7, (1, 1): RED_7}) == (2, 2, True, 2)


def test_accuracies_are_over_things_and_over_scenes():
    one = Scene(ARRANGEMENTS[0], (RED_7,), ((0, 0),))
    right = [draw({(1, 0): RED_7, (1, 1): BLUE_2}), draw({(0, 2): Thing(7, 1)})]
    assert accuracies(ORACLE, [PAIR, one], np.stack(right)) == {
        "digit_accuracy": 1, "color_accuracy": pytest.approx(2 / 3), "position_accuracy": 1,
        "scene_accuracy": 0.5,
    }  # fmt: skip


def test_the_nearest_hue_is_found_and_grey_has_none():
    rgb = np.array(list(COLORS.values()), float)
    assert nearest_color(rgb).tolist() == list(range(6))
    # 24 degrees to either side, dim, and half as saturated
    for towards in (1, -1):
        turned = 0.6 * rgb + 0.4 * np.roll(rgb, towards, axis=0)
        turned = 0.2 * (turned / turned.max(-1, keepdims=True)) + 0.1
        assert nearest_color(turned).tolist() == list(range(6))
    grey = np.array([[0.5, 0.5, 0.5], [0.5, 0.45, 0.42], [0.0, 0.0, 0.0]])
    assert nearest_color(grey).tolist() == [NO_COLOR] * 3
