"""Pairs: held-out dates are new in every language, lines stay aligned, mistakes are told."""

import gzip
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdl.data import Pair, PairDataset, dates, multi30k, pair_files
from jaxdl.errors import UserError

ROOT = Path(__file__).parents[2]
MULTI30K = ROOT.parent / "shared" / "data" / "multi30k"
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def written():
    return dates(train=4000, held_out=300)


def test_no_date_is_in_two_splits_in_whatever_language(written):
    days = [{pair.target for pair in getattr(written, split)} for split in SPLITS]
    assert [len(getattr(written, split)) for split in SPLITS] == [4000, 300, 300]
    assert all(len(group) > 200 for group in days)
    assert not days[0] & days[1]
    assert not days[0] & days[2]
    assert not days[1] & days[2]


def test_a_written_date_is_of_one_day_alone(written):
    read: dict[str, str] = {}
    for split in SPLITS:
        for pair in getattr(written, split):
            assert read.setdefault(pair.source, pair.target) == pair.target
            assert re.fullmatch(r"(19|20)\d\d-[01]\d-[0-3]\d", pair.target)
            assert pair.target[2:4] in pair.source  # the year is always written out
    assert sum("oktober" in source for source in read) > 5


def test_equal_seeds_write_equal_dates_and_others_others(written):
    again, other = dates(train=4000, held_out=300), dates(train=4000, held_out=300, seed=1)
    assert again == written
    assert len(set(other.train) & set(written.train)) < 400
    # A day is held out by itself, so other draws cannot bring it into training.
    held = {pair.target for pair in (*written.test, *written.validation)}
    assert not held & {pair.target for pair in other.train}


def write(folder, source, target):
    paths = folder / "a.de", folder / "a.en"
    for path, lines in zip(paths, (source, target), strict=True):
        path.write_text("".join(f"{line}\n" for line in lines))
    return paths


def test_line_n_is_the_translation_of_line_n(tmp_path):
    source = [f"satz {n}" for n in range(60)]
    source[7] = "  "  # no translation is learnt of nothing
    source[30] = source[31]
    target = [line.replace("satz", "sentence") for line in source]
    data = pair_files(*write(tmp_path, source, target))
    everything = [pair for split in SPLITS for pair in getattr(data, split)]
    assert all(pair.target == pair.source.replace("satz", "sentence") for pair in everything)
    assert len(everything) == len(set(everything)) == 58
    assert len(data.test) == len(data.validation) == 3


def test_files_that_do_not_fit_are_told(tmp_path):
    with pytest.raises(UserError, match=r"has 3 lines and .* has 2: line n of one"):
        pair_files(*write(tmp_path, "abc", "ab"))
    with pytest.raises(UserError, match="3 different pairs are too few"):
        pair_files(*write(tmp_path, "abc", "abc"))
    with pytest.raises(UserError, match="cannot be read"):
        pair_files(tmp_path / "nowhere", tmp_path / "a.en")
    with pytest.raises(UserError, match="no pairs in the test split"):
        PairDataset(name="x", train=[Pair("a", "b")], validation=[Pair("a", "b")], test=[])


def test_a_function_of_strings_maps_both_sides(written):
    lower = written.map(str.upper)
    assert lower.test[3] == Pair(*(side.upper() for side in written.test[3]))
    assert lower.name == written.name


def test_a_language_that_multi30k_has_not_is_told():
    with pytest.raises(UserError, match="has de and en here, not 'fr'"):
        multi30k("fr", "en")


@pytest.mark.slow
@pytest.mark.skipif(not MULTI30K.is_dir(), reason=f"there is no {MULTI30K}")
def test_multi30k_is_prepared_from_files_and_read_without_tensorflow(tmp_path):
    """In a process of its own, which knows what has been imported."""
    script = f"""
        import sys
        from jaxdl.data import multi30k
        data = multi30k("en", "de", data_dir={str(tmp_path)!r}, manual_dir={str(MULTI30K)!r})
        assert "tensorflow" not in sys.modules
        print(data.name, *(len(getattr(data, split)) for split in {SPLITS}))
        for pair in data.test:
            print(*pair, sep="\\t")
    """
    lines = "\n".join(line[8:] for line in script.splitlines())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", lines], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    name, *pairs = done.stdout.splitlines()
    assert name == "multi30k-en-de 29000 1014 1000"
    sides = [gzip.decompress((MULTI30K / f"test_2016_flickr.{x}.gz").read_bytes()).decode()
             for x in ("en", "de")]  # fmt: skip
    expected = zip(*(side.splitlines() for side in sides), strict=True)
    assert pairs == ["\t".join(map(str.strip, pair)) for pair in expected]


@pytest.mark.slow
@pytest.mark.skipif(not MULTI30K.is_dir(), reason=f"there is no {MULTI30K}")
def test_a_file_of_multi30k_that_is_not_the_real_one_is_refused(tmp_path):
    for path in MULTI30K.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "val.en.gz").write_bytes(gzip.compress(b"two lines\nof somebody else\n"))
    with pytest.raises(UserError, match="preparing failed"):
        multi30k(data_dir=tmp_path / "data", manual_dir=tmp_path)
