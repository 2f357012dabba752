"""TFDS: prepared datasets read without TensorFlow, and every way that preparing can fail.

Pictures that are PNG bytes already are written by TFDS without TensorFlow, so a tiny dataset of
real record files serves where TensorFlow is absent.
"""

import importlib.util
import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from jaxdl.data import ArraySource, ImageDataset, RecordSource, load_into_memory, tfds_images
from jaxdl.data import tfds as tfds_module
from jaxdl.errors import UserError

ROOT = Path(__file__).parents[2]
MNIST = ROOT.parent / "shared" / "data" / "mnist"
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


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
            yield i, {"image": png(tiny_picture(i, count)), "label": i % 2}


class VariedPictures(TinyPictures):
    """The same, said to be of any size."""

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 1))
        label = tfds.features.ClassLabel(names=["cat", "dog"])
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)


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
    return np.random.default_rng([i, count]).integers(0, 256, (6, 5), dtype=np.uint8)


def png(array: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    file.seek(0)
    return file


def prepare(name: str, data_dir: Path):
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record", try_gcs=False)
    builder.download_and_prepare(download_config=config)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    data_dir = tmp_path_factory.mktemp("tfds")
    prepare("tiny_pictures", data_dir)
    prepare("varied_pictures", data_dir)
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


def test_images_of_one_size_keep_it_and_others_are_brought_to_the_one_asked_for(prepared):
    sizes = {"tiny_pictures": (6, 5, 1), "varied_pictures": (3, 4, 1)}
    for name, shape in sizes.items():
        assert tfds_images(name, data_dir=prepared, size=(3, 4)).image_shape == shape
    with pytest.raises(UserError, match="vary in size"):
        tfds_images("varied_pictures", data_dir=prepared)


def test_a_cache_that_cannot_be_written_is_done_without(prepared, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(tfds_module.np, "save", full)
    dataset = tfds_images("varied_pictures", data_dir=prepared, size=(6, 5))
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
        import test_tfds
        dataset = test_tfds.tfds_images("tiny_pictures", data_dir=sys.argv[1])
        assert len(dataset.train) == 10
        assert "tensorflow" not in sys.modules
        print("read")
    """
    tfds_images("tiny_pictures", data_dir=prepared)
    done = in_a_process(code, prepared)
    assert (done.stdout, done.stderr) == ("read\n", "")


def test_importing_the_package_imports_none_of_what_only_some_sources_need():
    code = """
        import jaxdl.data, jax._src.xla_bridge as bridge
        heavy = {"tensorflow_datasets", "grain", "sklearn", "tokenizers"}
        heavy |= {"jaxdl.models", "jaxdl.train"}
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


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no route to host"),
        tfds.download.DownloadError("status 404"),
        NonMatchingChecksumError("the file\nis another one"),
    ],
)
def test_a_download_that_fails_tells_of_the_manual_folder(tmp_path, monkeypatch, error):
    def fail(self, **kwargs):
        raise error

    monkeypatch.setattr(tfds_module.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(TinyPictures, "download_and_prepare", fail)
    with pytest.raises(UserError, match=r"tiny_pictures: preparing failed .*--manual-dir") as told:
        tfds_images("tiny_pictures", data_dir=tmp_path)
    assert "\n" not in str(told.value)


def test_a_killed_preparation_leaves_nothing_that_could_be_taken_for_a_dataset(tmp_path):
    code = """
        import test_tfds
        test_tfds.TinyPictures.die = True
        test_tfds.prepare("tiny_pictures", sys.argv[1])
    """
    assert in_a_process(code, tmp_path).returncode == 9
    builder = tfds.builder("tiny_pictures", data_dir=tmp_path, file_format="array_record")
    assert not builder.is_prepared()
    prepare("tiny_pictures", tmp_path)
    assert_tiny(tfds_images("tiny_pictures", data_dir=tmp_path))


@pytest.mark.parametrize("at", ["download_and_prepare", "_split_generators"])
def test_what_another_process_prepares_meanwhile_is_read(tmp_path, monkeypatch, at):
    """The other is done before this one begins, or before it can rename what it has written."""
    real = getattr(TinyPictures, at)

    def overtaken(self, *args, **kwargs):
        monkeypatch.setattr(TinyPictures, at, real)
        prepare("tiny_pictures", tmp_path)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(TinyPictures, at, overtaken)
    monkeypatch.setattr(TinyPictures, "NEEDS_TENSORFLOW", False, raising=False)
    assert_tiny(tfds_images("tiny_pictures", data_dir=tmp_path))
    assert not list(tmp_path.rglob("*incomplete*"))


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
