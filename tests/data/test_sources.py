"""Sources: digits, picture files and folders, and TFDS read without TensorFlow."""

import importlib.util
import io
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from jaxdl.data import (
    ArraySource,
    ImageDataset,
    RecordSource,
    decode_image,
    digits,
    image_folder,
    load_into_memory,
    sources,
    tfds_images,
)
from jaxdl.data import tfds as tfds_module
from jaxdl.errors import UserError

ROOT = Path(__file__).parents[2]
MNIST = ROOT.parent / "shared" / "data" / "mnist"
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


def encoded(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- sources in memory


def test_load_into_memory_equals_the_examples_one_by_one():
    examples = [{"image": pixels(2, 3, 1, seed=i), "label": np.int32(i)} for i in range(150)]
    seen = []
    loaded = load_into_memory(examples, progress=lambda done, total: seen.append((done, total)))
    assert len(loaded) == 150
    assert loaded.arrays["label"].dtype == np.int32
    for i, example in enumerate(examples):
        np.testing.assert_array_equal(loaded[i]["image"], example["image"])
        assert loaded[i]["label"] == i
    assert seen[-1] == (150, 150)
    assert load_into_memory(loaded) is loaded


def test_arrays_of_different_lengths_are_no_source():
    with pytest.raises(ValueError, match="one length"):
        ArraySource({"image": pixels(3, 1, 1, 1), "label": np.arange(2)})


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_out_of_range_is_named(label):
    good = ArraySource({"label": np.array([0, 1, 0], np.int32)})
    bad = ArraySource({"label": np.array([0, 1, 1, label, label], np.int32)})
    with pytest.raises(UserError, match=rf"toy \(test\): example 3 has label {label}, .*\[0, 2\)"):
        ImageDataset(name="toy", classes=("a", "b"), train=good, test=bad)


# --- digits


def test_digits_are_sklearns_each_once_and_the_test_set_is_a_stratified_fifth():
    dataset = digits()
    assert len(dataset.train) + len(dataset.test) == 1797
    assert dataset.image_shape == (8, 8, 1)
    raw = load_digits()
    joined = {
        name: np.concatenate([dataset.train.arrays[name], dataset.test.arrays[name]])
        for name in ("image", "label")
    }
    assert joined["image"].dtype == np.uint8
    assert joined["label"].dtype == np.int32
    expected = np.column_stack([np.rint(raw.data * 255 / 16), raw.target])
    actual = np.column_stack([joined["image"].reshape(1797, 64), joined["label"]])
    np.testing.assert_array_equal(
        actual[np.lexsort(actual.T)], expected[np.lexsort(expected.T)].astype(np.uint8)
    )
    for label in range(10):
        held_out = (dataset.test.arrays["label"] == label).sum()
        assert abs(held_out - (raw.target == label).sum() / 5) < 1


def test_the_digits_held_out_are_the_third_of_every_five_of_a_class():
    raw = load_digits()
    seen, expected = [0] * 10, []
    for image, label in zip(raw.images, raw.target, strict=True):
        if seen[label] % 5 == 2:
            expected.append(image)
        seen[label] += 1
    test = digits().test.arrays["image"][..., 0]
    np.testing.assert_array_equal(test, np.rint(np.array(expected) * 255 / 16).astype(np.uint8))


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


# --- TFDS. Pictures that are PNG bytes already are written by TFDS without TensorFlow.


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """Ten pictures to train on and four to test on, of two classes."""

    VERSION = tfds.core.Version("1.0.0")
    die = False

    def _info(self):
        image = tfds.features.Image(shape=(6, 5, 1))
        label = tfds.features.ClassLabel(names=["cat", "dog"])
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        for i in range(count):
            if self.die and i == 2:
                os._exit(9)
            yield i, {"image": io.BytesIO(encoded(tiny_picture(i, count))), "label": i % 2}


class TinyTexts(tfds.core.GeneratorBasedBuilder):
    """No pictures at all."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"text": "a"}


def tiny_picture(i: int, count: int) -> np.ndarray:
    return pixels(6, 5, seed=100 * count + i)


def prepare(name: str, data_dir: Path):
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record", try_gcs=False)
    builder.download_and_prepare(download_config=config)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    data_dir = tmp_path_factory.mktemp("tfds")
    prepare("tiny_pictures", data_dir)
    return data_dir


def assert_tiny(dataset: ImageDataset):
    assert dataset.classes == ("cat", "dog")
    for source, count in ((dataset.train, 10), (dataset.test, 4)):
        assert len(source) == count
        expected = {tiny_picture(i, count).tobytes(): i % 2 for i in range(count)}
        actual = {source[i]["image"].tobytes(): int(source[i]["label"]) for i in range(count)}
        assert actual == expected


def test_a_prepared_dataset_is_read_and_its_decoded_arrays_are_kept(prepared, monkeypatch):
    assert_tiny(tfds_images("tiny_pictures", data_dir=prepared))
    # From now on nothing is decoded, and nothing is left of the writing.
    monkeypatch.setattr(tfds_module, "decode_image", None)
    dataset = tfds_images("tiny_pictures", data_dir=prepared)
    assert_tiny(dataset)
    assert isinstance(dataset.train, ArraySource)
    assert isinstance(dataset.train.arrays["image"], np.memmap)
    assert not list(prepared.rglob("*incomplete*"))


def test_sets_that_do_not_fit_are_decoded_at_each_access(prepared, monkeypatch):
    monkeypatch.setattr(tfds_module, "RESIDENT_LIMIT", 0)
    dataset = tfds_images("tiny_pictures", data_dir=prepared)
    assert isinstance(dataset.train, RecordSource)
    assert_tiny(dataset)


def test_images_are_brought_to_the_size_asked_for(prepared):
    dataset = tfds_images("tiny_pictures", data_dir=prepared, size=(3, 4))
    assert dataset.image_shape == (3, 4, 1)
    assert tfds_images("tiny_pictures", data_dir=prepared).image_shape == (6, 5, 1)


def test_a_cache_that_cannot_be_written_is_done_without(prepared, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(tfds_module.np, "save", full)
    dataset = tfds_images("tiny_pictures", data_dir=prepared, size=(6, 5))
    assert "cannot be kept" in caplog.text
    assert_tiny(dataset)
    assert not list(prepared.rglob("*incomplete*"))


def in_a_process(code: str, *args: object) -> subprocess.CompletedProcess:
    path = f"{ROOT}{os.pathsep}{Path(__file__).parent}"
    return subprocess.run(
        [sys.executable, "-c", "import sys\n" + textwrap.dedent(code), *map(str, args)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_reading_imports_no_tensorflow_and_prints_nothing(prepared):
    code = """
        import test_sources
        dataset = test_sources.tfds_images("tiny_pictures", data_dir=sys.argv[1], size=(2, 2))
        assert len(dataset.train) == 10
        assert "tensorflow" not in sys.modules
        print("read")
    """
    tfds_images("tiny_pictures", data_dir=prepared, size=(2, 2))
    done = in_a_process(code, prepared)
    assert (done.stdout, done.stderr) == ("read\n", "")


def test_importing_the_package_imports_none_of_what_only_some_sources_need():
    code = """
        import jaxdl.data, jax._src.xla_bridge as bridge
        heavy = {"tensorflow_datasets", "grain", "sklearn", "jaxdl.models", "jaxdl.train"}
        print(sorted(heavy & set(sys.modules)), bridge.backends_are_initialized())
    """
    assert in_a_process(code).stdout == "[] False\n"


def test_not_prepared_and_no_tensorflow_tells_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(
        UserError, match=r"mnist is not prepared in .*jaxdl\[prepare\].*-e '\.\[pre"
    ):
        tfds_images("mnist", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"--manual-dir .*nowhere: there is no such folder"):
        tfds_images("mnist", data_dir=tmp_path, manual_dir=tmp_path / "nowhere")


def test_a_killed_preparation_leaves_nothing_that_could_be_taken_for_a_dataset(tmp_path):
    code = """
        import test_sources
        test_sources.TinyPictures.die = True
        test_sources.prepare("tiny_pictures", sys.argv[1])
    """
    assert in_a_process(code, tmp_path).returncode == 9
    builder = tfds.builder("tiny_pictures", data_dir=tmp_path, file_format="array_record")
    assert not builder.is_prepared()
    prepare("tiny_pictures", tmp_path)
    assert_tiny(tfds_images("tiny_pictures", data_dir=tmp_path))


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="'mnits'; did you mean mnist"):
        tfds_images("mnits", data_dir=tmp_path)
    for name in ("mnist:9.9.9", "mnist/nothing", "../mnist"):
        with pytest.raises(UserError, match="TFDS cannot open") as told:
            tfds_images(name, data_dir=tmp_path)
        assert "\n" not in str(told.value)


def test_a_dataset_of_another_kind_tells_what_it_has(tmp_path):
    prepare("tiny_texts", tmp_path)
    with pytest.raises(UserError, match=r"one Image and one ClassLabel, but has text \(Text\)"):
        tfds_images("tiny_texts", data_dir=tmp_path)


def test_a_dataset_without_a_test_set_tells_its_splits(prepared, monkeypatch):
    real = tfds_module._splits

    def only_train(builder, name):
        monkeypatch.setattr(type(builder.info), "splits", {"train": None, "unlabelled": None})
        return real(builder, name)

    monkeypatch.setattr(tfds_module, "_splits", only_train)
    with pytest.raises(UserError, match=r"has \['train', 'unlabelled'\]"):
        tfds_images("tiny_pictures", data_dir=prepared)


def test_a_label_out_of_range_in_records_is_named(prepared):
    source = RecordSource(
        directory=str(prepared / "tiny_pictures/1.0.0"),
        split="train",
        image_key="image",
        label_key="label",
        classes=("cat",),
        shape=(6, 5, 1),
        resize=False,
    )
    with pytest.raises(UserError, match=r"example \d has label 1, outside \[0, 1\)"):
        load_into_memory(source)


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.is_dir(), reason=f"needs the original MNIST files in {MNIST}")
@pytest.mark.skipif(not HAS_TENSORFLOW, reason="preparing a TFDS dataset needs TensorFlow")
def test_mnist_is_prepared_from_the_original_files(tmp_path):
    dataset = tfds_images("mnist", data_dir=tmp_path, manual_dir=MNIST)
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    assert dataset.image_shape == (28, 28, 1)
    counts = np.bincount(dataset.train.arrays["label"])
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    mean = dataset.train.arrays["image"].mean() / 255
    assert mean == pytest.approx(0.1307, abs=5e-5)


def test_every_nth_is_stratified_and_takes_the_middle():
    labels = np.array([0, 1, 0, 0, 1, 0, 0, 1])
    chosen = sources.every_nth_of_each_class(labels, 3)
    assert np.flatnonzero(chosen).tolist() == [2, 4, 6]
