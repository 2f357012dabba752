"""Texts: what they are split into, and every mistake told in one line."""

import importlib.util
import sysconfig
import zlib
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from jaxdl.data import CharTokenizer, stdlib_source, text_file, tfds_text
from jaxdl.errors import UserError

SHAKESPEARE = Path(__file__).parents[3] / "shared" / "data" / "tiny_shakespeare"
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


class TinyTextsInSplits(tfds.core.GeneratorBasedBuilder):
    """A text in three splits, as `tiny_shakespeare` is."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        splits = {"train": "Ein Sätzchen, ", "validation": "noch e", "test": "ins."}
        return {name: self._generate_examples(part) for name, part in splits.items()}

    def _generate_examples(self, part):
        yield 0, {"text": part}


class TinyTextsWithoutTest(TinyTextsInSplits):
    """The same, with nothing held out."""

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("a text")}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Makes a small library: three files held out, four not, and what is to be left out."""
    root = tmp_path_factory.mktemp("stdlib")
    names = [f"module_{i}.py" for i in range(60)]
    held_out = [n for n in names if zlib.crc32(n.encode()) % 10 == 0][:3]
    kept = [n for n in names if zlib.crc32(n.encode()) % 10][:4]
    for name in held_out + kept:
        (root / name).write_text(f"x = {name!r}\n")
    for name in ("test/test_x.py", "site-packages/other.py", "json/tests/test_y.py"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("assert False\n")
    (root / "notes.txt").write_text("no code\n")
    (root / "umlaut.py").write_text("x = 'ä'\n", encoding="utf-8")
    return root, held_out, kept


def test_whole_files_of_the_standard_library_are_held_out(library, monkeypatch):
    root, held_out, kept = library
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(root))
    dataset = stdlib_source()
    for names, split in ((held_out, dataset.test), (kept, dataset.train)):
        in_order = sorted(names, key=lambda name: zlib.crc32(name.encode()))
        assert split == "\n".join(f"x = {name!r}\n" for name in in_order)


def test_the_standard_library_is_cut_between_files(library, monkeypatch):
    root, _, _ = library
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(root))
    whole, cut = stdlib_source(), stdlib_source(500)
    assert len(cut.test) <= 50
    assert len(cut.train) <= 450
    assert whole.test.startswith(cut.test)
    assert len(cut.test) < len(whole.test)
    with pytest.raises(UserError, match="came without its source"):
        stdlib_source(10)


def test_the_real_standard_library_is_python_in_ascii_and_the_same_each_time():
    dataset = stdlib_source(400_000)
    assert dataset == stdlib_source(400_000)
    assert 200_000 < len(dataset.train) <= 360_000
    assert 10_000 < len(dataset.test) <= 40_000
    assert (dataset.train + dataset.test).isascii()
    assert dataset.name.startswith("stdlib-3.")
    compile(dataset.test, "held out", "exec", dont_inherit=True, flags=0x400)  # an AST only


def test_a_file_is_split_after_nine_tenths(tmp_path):
    path = tmp_path / "text.txt"
    content = "äöü\r\n" * 21  # line ends stay, characters count and not bytes
    path.write_bytes(content.encode("utf-8-sig"))
    dataset = text_file(path)
    assert (dataset.train, dataset.test) == (content[:94], content[94:])
    assert dataset.name == f"file:{path}"
    other = tmp_path / "other.txt"
    other.write_text("held out", encoding="utf-8")
    dataset = text_file(path, other)
    assert (dataset.train, dataset.test) == (content, "held out")


def test_files_that_are_no_text_are_told_in_one_line(tmp_path):
    def told(content: bytes | None, match: str):
        path = tmp_path / "text.txt"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=match) as error:
            text_file(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    told(None, "No such file")
    told(b"", "is empty")
    told(b"caf\xe9 au lait", "is not UTF-8 at byte 3")
    told(b"short", r"held-out text has 1 character")
    with pytest.raises(UserError, match="Is a directory"):
        text_file(tmp_path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    for name in ("tiny_texts_in_splits", "tiny_texts_without_test"):
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record", try_gcs=False)
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_config=config)
    return data_dir


def test_all_that_tfds_does_not_train_on_is_held_out(prepared):
    dataset = tfds_text("tiny_texts_in_splits", data_dir=prepared)
    assert (dataset.train, dataset.test) == ("Ein Sätzchen, ", "noch eins.")


def test_a_dataset_of_another_kind_tells_what_it_has(prepared, monkeypatch):
    with pytest.raises(UserError, match=r"needs splits train and validation or test, has \['tr"):
        tfds_text("tiny_texts_without_test", data_dir=prepared)

    class Pictures:
        features = {"image": tfds.features.Image(shape=(2, 2, 1))}  # noqa: RUF012

    class Builder:
        info = Pictures()

        def is_prepared(self):
            return True

    monkeypatch.setattr("jaxdl.data.tfds._open", lambda name, data_dir: Builder())
    with pytest.raises(UserError, match=r"pictures: needs one Text, but has image \(Image\)"):
        tfds_text("pictures")


needs_shakespeare = pytest.mark.skipif(
    not SHAKESPEARE.is_dir(), reason=f"needs the original file in {SHAKESPEARE}"
)


@pytest.mark.slow
@needs_shakespeare
@pytest.mark.skipif(not HAS_TENSORFLOW, reason="preparing a TFDS dataset needs TensorFlow")
def test_tiny_shakespeare_by_tfds_is_the_split_of_the_file(tmp_path):
    dataset = tfds_text("tiny_shakespeare", data_dir=tmp_path, manual_dir=SHAKESPEARE)
    file = text_file(SHAKESPEARE / "input.txt")
    assert (dataset.train, dataset.test) == (file.train, file.test)


@needs_shakespeare
def test_tiny_shakespeare_has_the_usual_sizes():
    file = text_file(SHAKESPEARE / "input.txt")
    assert (len(file.train), len(file.test)) == (1_003_854, 111_540)
    assert CharTokenizer.train(file.train).size == 65 + 2
