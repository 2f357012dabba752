"""Sheets and films: where each picture lies, how large it is, and what is read back."""

import numpy as np
import pytest
from PIL import Image

from jaxdl.errors import UserError
from jaxdl.run.pictures import GAP, check_picture, save_film, save_picture, sheet


def test_pictures_lie_row_after_row_enlarged_by_a_whole_number(tmp_path):
    images = np.arange(5)[:, None, None, None] / 4 * np.ones((1, 3, 4, 1))
    drawn = sheet(images, columns=2, side=9)  # twice as large, for three times would be 12 wide
    assert drawn.shape == (3 * (6 + GAP) + GAP, 2 * (8 + GAP) + GAP, 3)
    for i in range(5):
        top, left = i // 2 * (6 + GAP) + GAP, i % 2 * (8 + GAP) + GAP
        assert (drawn[top : top + 6, left : left + 8] == round(255 * i / 4)).all()
    save_picture(tmp_path / "new" / "sheet.png", drawn)
    with Image.open(tmp_path / "new" / "sheet.png") as image:
        np.testing.assert_array_equal(np.asarray(image), drawn)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sheet.xyz", "unknown file extension: .xyz"),
        ("sheet", "unknown file extension"),
        ("sheet.psd", "PSD"),  # which is read, and not written
        ("sheet.xbm", "cannot write mode RGB as XBM"),
        ("file/sheet.png", "File exists"),
    ],
)
def test_a_picture_that_could_not_be_written_is_told_beforehand(name, told, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"--out .*{name} cannot be written .*{told}"):
        check_picture(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_picture_that_can_be_written_leaves_what_is_there_until_it_is(tmp_path):
    path = tmp_path / "new" / "sheet.png"
    check_picture(path)
    assert not list(path.parent.iterdir())
    path.write_text("the one before")
    check_picture(path)
    assert path.read_text() == "the one before"


def test_colours_stay_and_what_is_out_of_range_is_cut_off():
    images = np.array([[[[-1.0, 0.5, 7.0]]], [[[np.nan, 0.0, 1.0]]]])
    drawn = sheet(images, columns=1, side=1)
    assert drawn[GAP, GAP].tolist() == [0, 128, 255]
    assert drawn[2 * GAP + 1, GAP].tolist() == [0, 0, 255]


def test_a_film_has_all_its_frames_and_loops(tmp_path):
    frames = [sheet(np.full((1, 2, 2, 1), x / 5), columns=1) for x in range(5)]
    save_film(tmp_path / "film.gif", frames, seconds=1)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 5
        assert film.info["loop"] == 0
        film.seek(4)
        assert abs(np.asarray(film.convert("L"))[20, 20] - 204) < 3
