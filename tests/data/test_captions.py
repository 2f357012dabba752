"""Captioned pictures: their tokens, folders of one's own, and what is wrong with them."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from PIL import Image

from jaxdl.data import (
    ArraySource,
    ByteTokenizer,
    ImageDataset,
    Streaming,
    caption_folder,
    digit_scenes,
    digits,
    make_pipeline,
)
from jaxdl.data.captions import encode_caption, pad_captions
from jaxdl.data.tokenizers import UNKNOWN
from jaxdl.errors import UserError

SHAPE = {"size": (6, 9), "channels": 3, "vocabulary": 300, "length": 24}


@pytest.fixture(scope="module")
def data():
    return digit_scenes(digits(), side=8, count=120, test=40)


def test_tokens_are_of_the_caption_and_no_word_is_unknown(data):
    for i in range(40):
        example = data.train[i]
        assert example["tokens"].shape == (16,)
        assert example["tokens"].dtype == np.int32
        assert data.title(example) == data.train.pictures.caption(i)
        for scenes in (data.train.pictures, data.seen, data.unseen):
            assert UNKNOWN not in encode_caption(data.tokenizer, scenes.caption(i))
        np.testing.assert_array_equal(example["image"], data.train.pictures.picture(i))


def test_a_prompt_may_be_written_in_several_ways(data):
    encode = lambda text: encode_caption(data.tokenizer, text).tolist()  # noqa: E731
    plain = encode("a red seven, a blue two and a green four in a row")
    assert encode("  A RED seven , a  blue two\nand a green Four in a row ") == plain
    assert encode("") == encode(" ") == []
    assert encode("a red sevn").count(UNKNOWN) == 1


def test_captions_are_padded_to_a_multiple_and_never_cut():
    rows = [np.arange(1, n + 1, dtype=np.int32) for n in (3, 0, 11)]
    padded = pad_captions(rows, 5)
    assert padded.shape == (3, 16)
    for row, tokens in zip(padded, rows, strict=True):
        assert row[row > 0].tolist() == tokens.tolist()
    assert pad_captions(rows[:2], 5).shape == (2, 8)


def test_batches_are_functions_of_their_number_and_are_shared_by_processes(data):
    whole = make_pipeline(data.train, 8, seed=5, resident=False)
    assert isinstance(whole, Streaming)
    batch = whole.batch(20)
    for name, array in next(whole.batches(20)).items():
        np.testing.assert_array_equal(array, batch[name])
    parts = [
        make_pipeline(data.train, 8, seed=5, resident=False, shard=(i, 2)).batch(20)
        for i in range(2)
    ]
    for name, array in batch.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


def test_digits_of_another_size_are_brought_to_the_cells():
    rng = np.random.default_rng(0)
    make = lambda n: ArraySource({  # noqa: E731
        "image": np.broadcast_to(rng.integers(0, 256, (n, 1, 1, 1)), (n, 6, 6, 1)).astype("u1"),
        "label": np.arange(n, dtype=np.int32) % 10,
    })  # fmt: skip
    flat = ImageDataset(name="flat", classes=tuple("0123456789"), train=make(30), test=make(20))
    scenes = digit_scenes(flat, side=4, count=5, test=5).train.pictures
    assert scenes.images.shape == (30, 4, 4)
    np.testing.assert_array_equal(scenes.images, flat.train.arrays["image"][:, :4, :4, 0])
    assert scenes.picture(0).shape == (8, 12, 3)


def test_scenes_are_made_of_digits_alone():
    clothes = dataclasses.replace(digits(), name="clothes", classes=tuple("abcdefghij"))
    with pytest.raises(UserError, match="--dataset clothes: scenes are made of digits"):
        digit_scenes(clothes, side=8, count=5, test=5)


def write(folder, count, *, start=0, lines=()):
    folder.mkdir(parents=True, exist_ok=True)
    texts = list(lines)
    for i in range(start, start + count):
        Image.fromarray(np.full((8, 10, 3), i, np.uint8)).save(folder / f"{i}.png")
        line = {"file_name": f"{i}.png", "text": f"Picture  number {i}", "other": i}
        texts.append(json.dumps(line))
    (folder / "metadata.jsonl").write_text("\n\n".join(texts), encoding="utf-8-sig")
    return folder


def test_a_folder_with_one_file_of_captions_holds_out_one_in_ten(tmp_path, caplog):
    write(tmp_path, 20)
    with caplog.at_level(logging.WARNING):
        data = caption_folder(tmp_path, **SHAPE)
    assert "has no test/: one picture in ten is held out, 2" in caplog.text
    assert (len(data.train), len(data.test)) == (18, 2)
    assert [int(data.test[i]["image"][0, 0, 0]) for i in range(2)] == [5, 15]
    assert data.title(data.test[0]) == "picture number 5"
    example = data.train[17]
    assert example["image"].shape == (6, 9, 3)
    assert data.title(example) == f"picture number {example['image'][0, 0, 0]}"
    widths = {data.train[i]["tokens"].shape for i in range(18)}
    assert len(widths) == 1


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_ends_at_a_line_feed_alone(tmp_path, end):
    """JSON lets U+2028 and U+0085 stand in a string as they are."""
    write(tmp_path, 10)
    lines = [
        json.dumps({"file_name": f"{i}.png", "text": f"a\u2028{i}\x85"}, ensure_ascii=False)
        for i in range(10)
    ]
    (tmp_path / "metadata.jsonl").write_bytes(end.join([*lines, ""]).encode())
    data = caption_folder(tmp_path, **SHAPE)
    assert data.test.pictures.caption(0) == "a\u20285\x85"
    assert len(data.train) == 9


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_a_folder_with_two_splits(tmp_path, held_out):
    write(tmp_path / "train", 4)
    write(tmp_path / held_out, 3, start=50)
    data = caption_folder(tmp_path, **SHAPE)
    assert (len(data.train), len(data.test)) == (4, 3)
    assert data.title(data.test[2]) == "picture number 52"


def test_a_caption_that_is_too_long_is_cut_and_told(tmp_path, caplog):
    write(tmp_path, 12)
    with caplog.at_level(logging.WARNING):
        data = caption_folder(tmp_path, **{**SHAPE, "length": 1})
    assert "12 captions have more than 1 tokens" in caplog.text
    whole = encode_caption(data.tokenizer, data.train.pictures.caption(0))
    assert data.train[0]["tokens"].tolist() == [whole[0], *[0] * 7]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("1.png: a cat", 'line 3: must be like {"file_name"'),
        ('{"file_name": "1.png"}', "line 3: must be like"),
        ("[1]", "line 3: must be like"),
        ('{"file_name": "1.png", "text": "  "}', "line 3: file_name and text must be text"),
        ('{"file_name": "1.png", "text": 3}', "line 3: file_name and text must be text"),
        (r'{"file_name": "1.png", "text": "\ud800"}', "line 3: the text is not valid Unicode"),
        ("[" * 100_000, "line 3: must be like"),
        ('{"file_name": "none.png", "text": "a"}', r"line 3: there is no file .*none\.png"),
    ],
)
def test_a_line_that_is_no_caption_is_told_by_its_number(tmp_path, line, told):
    write(tmp_path, 12)
    good = json.dumps({"file_name": "1.png", "text": "a cat"})
    write(tmp_path, 12, lines=[good, line])
    with pytest.raises(UserError, match=told):
        caption_folder(tmp_path, **SHAPE)


def test_what_is_missing_is_told(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        caption_folder(tmp_path / "none", **SHAPE)
    with pytest.raises(UserError, match=r"has no metadata\.jsonl with lines like"):
        caption_folder(tmp_path, **SHAPE)
    with pytest.raises(UserError, match="9 pictures are too few"):
        caption_folder(write(tmp_path / "few", 9), **SHAPE)
    write(tmp_path / "half" / "train", 3)
    with pytest.raises(UserError, match=r"has train/metadata\.jsonl, and no test/"):
        caption_folder(tmp_path / "half", **SHAPE)
    blank = tmp_path / "blank"
    blank.mkdir()
    (blank / "metadata.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="has no line"):
        caption_folder(blank, **SHAPE)


def test_bytes_write_down_any_prompt():
    assert encode_caption(ByteTokenizer(), "A  b").tolist() == [33, 98, 33, 99]
