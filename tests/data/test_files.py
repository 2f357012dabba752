"""Pictures in files: what the decoder does to each kind, and folders laid out rightly or not."""

import io
import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxdl.data import decode_image, image_folder, load_into_memory
from jaxdl.errors import UserError


def encoded(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- the decoder


def test_png_decodes_to_its_pixels_from_bytes_and_from_a_file(tmp_path):
    array = pixels(5, 4, 3)
    file = tmp_path / "a.png"
    file.write_bytes(encoded(array))
    for data in (encoded(array), file, str(file)):
        np.testing.assert_array_equal(decode_image(data, size=None, channels=3), array)


def test_exif_orientation_turns_the_picture_upright():
    array = pixels(5, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: turn clockwise to see it
    decoded = decode_image(encoded(array, exif=exif), size=None, channels=3)
    np.testing.assert_array_equal(decoded, np.rot90(array, -1))


def test_every_orientation_is_turned_as_pillow_does():
    for orientation in range(10):  # 1 is upright, 0 and 9 are nothing
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(pixels(5, 4, 3), exif=exif)
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        np.testing.assert_array_equal(decode_image(data, size=None, channels=3), expected)


ORIENTATION_6 = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
RESOLUTION_AS_TEXT = struct.pack("<HHI4s", 0x011A, 2, 4, b"72\0\0")  # a rational number by right


@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (b"II*\0\x08\0\0\0\x02\0" + ORIENTATION_6 + RESOLUTION_AS_TEXT + bytes(4), True),
        (b"II*\0\x08", False),
        (b"no EXIF at all", False),
    ],
    ids=["odd", "cut", "none"],
)
def test_odd_exif_does_not_keep_a_picture_from_being_read(exif, turned):
    array = pixels(5, 4, 3)
    decoded = decode_image(encoded(array, exif=b"Exif\0\0" + exif), size=None, channels=3)
    np.testing.assert_array_equal(decoded, np.rot90(array, -1) if turned else array)


def test_grey_becomes_three_equal_channels_and_colour_its_luma():
    grey, colour = pixels(5, 4), pixels(5, 4, 3)
    decoded = decode_image(encoded(grey), size=None, channels=3)
    np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=-1))
    luma = colour @ np.array([0.299, 0.587, 0.114])
    decoded = decode_image(encoded(colour), size=None, channels=1)
    assert decoded.shape == (5, 4, 1)
    assert np.abs(decoded[..., 0] - luma).max() <= 1


def test_sixteen_bits_are_scaled_not_clipped():
    wide = np.array([[0, 257, 32896], [65535, 65406, 1000]], np.uint16)
    decoded = decode_image(encoded(wide), size=None, channels=1)
    np.testing.assert_array_equal(decoded[..., 0], np.rint(wide / 257))


def test_transparency_is_laid_over_white():
    array = np.zeros((1, 3, 4), np.uint8)
    array[0, :, 3] = 255, 0, 128
    decoded = decode_image(encoded(array), size=None, channels=3)
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 255, 127])


def test_a_palette_decodes_to_its_colours():
    array = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    file = io.BytesIO()
    Image.fromarray(array).convert("P", palette=Image.Palette.ADAPTIVE).save(file, "GIF")
    np.testing.assert_array_equal(decode_image(file.getvalue(), size=None, channels=3), array)


def test_size_crops_the_centre_and_antialiases():
    wide = np.zeros((4, 12, 1), np.uint8)
    wide[:, 4:8] = np.indices((4, 4)).sum(0)[..., None] % 2 * 200  # a chequered centre
    decoded = decode_image(encoded(wide[..., 0]), size=(4, 4), channels=1)
    np.testing.assert_array_equal(decoded, wide[:, 4:8])
    chequers = (np.indices((16, 16)).sum(0) % 2 * 200).astype(np.uint8)
    small = decode_image(encoded(chequers), size=(4, 4), channels=1)
    assert np.abs(small.astype(int) - 100).max() < 15  # without antialiasing: 0 or 200
    assert decode_image(encoded(pixels(7, 5, 3)), size=(3, 6), channels=3).shape == (3, 6, 3)


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "missing"])
def test_a_broken_file_is_named(tmp_path, kind):
    file = tmp_path / "cat.png"
    whole = encoded(pixels(40, 40, 3))
    content = {"truncated": whole[: len(whole) // 2], "text": b"hello", "empty": b""}
    if kind != "missing":
        file.write_bytes(content[kind])
    with pytest.raises(UserError, match=r"cat\.png: ") as told:
        decode_image(file, size=None, channels=3)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("cut", [9, 30, 50])
def test_broken_bytes_are_named_as_the_caller_says(cut):
    with pytest.raises(UserError, match="example 7: "):
        decode_image(encoded(pixels(9, 9))[:cut], size=None, channels=1, name="example 7")


# --- folders


@pytest.fixture
def folder(tmp_path) -> Path:
    for split, count in (("train", 12), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            here = tmp_path / split / name
            here.mkdir(parents=True)
            for i in range(count):
                array = np.full((6, 6), 100 * label + i, np.uint8)
                (here / f"{i:02}.png").write_bytes(encoded(array))
    (tmp_path / "train" / "cat" / "Thumbs.db").write_bytes(b"not an image")
    (tmp_path / "train" / ".cache").mkdir()
    return tmp_path


def test_a_folder_gives_its_pictures_by_sorted_class(folder):
    dataset = image_folder(folder, size=(6, 6), channels=1)
    assert dataset.classes == ("cat", "dog")
    assert (len(dataset.train), len(dataset.test)) == (24, 6)
    assert dataset.image_shape == (6, 6, 1)
    for source in (dataset.train, dataset.test):
        for i in range(len(source)):
            example = source[i]
            value = 100 * example["label"] + i % (len(source) // 2)
            np.testing.assert_array_equal(example["image"], np.full((6, 6, 1), value))
            assert example["label"].dtype == np.int32


def test_validation_serves_where_there_is_no_test(folder):
    (folder / "test").rename(folder / "validation")
    assert len(image_folder(folder, size=(6, 6)).test) == 6


def test_a_tenth_is_held_out_where_there_is_no_test_and_it_is_said(folder, caplog):
    (folder / "test").rename(folder / "elsewhere")
    with caplog.at_level(logging.WARNING):
        dataset = image_folder(folder, size=(6, 6), channels=1)
    assert "held out" in caplog.text
    files = [*dataset.train.files, *dataset.test.files]
    assert sorted(files) == sorted((folder / "train").rglob("*.png"))
    assert dataset.test.labels.tolist() == [0, 1]
    again = image_folder(folder, size=(6, 6), channels=1)
    assert again.test.files == dataset.test.files


def empty_class(folder):
    (folder / "train" / "emu").mkdir()


def class_only_in_test(folder):
    (folder / "test" / "emu").mkdir()


def empty_file(folder):
    (folder / "train" / "dog" / "03.png").write_bytes(b"")


def no_train(folder):
    (folder / "train").rename(folder / "training")


def no_classes(folder):
    (folder / "train").rename(folder / "training")
    (folder / "train").mkdir()


def nothing_to_test_on(folder):
    (folder / "test").rename(folder / "elsewhere")
    (folder / "test").mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (empty_class, r"emu: has no images"),
        (class_only_in_test, r"no class 'emu'"),
        (empty_file, r"03\.png: is empty"),
        (no_train, r"has no train/"),
        (no_classes, r"no class folders"),
        (nothing_to_test_on, r"no image is left to test on"),
    ],
)
def test_a_folder_laid_out_wrongly_is_told(folder, spoil, words):
    spoil(folder)
    with pytest.raises(UserError, match=words):
        image_folder(folder, size=(6, 6))


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        image_folder(tmp_path / "nowhere", size=(6, 6))


def test_a_corrupt_file_in_a_folder_is_named_when_it_is_decoded(folder):
    (folder / "train" / "dog" / "03.png").write_bytes(b"hello")
    dataset = image_folder(folder, size=(6, 6))
    with pytest.raises(UserError, match=r"dog/03\.png: cannot be read"):
        load_into_memory(dataset.train)
