"""GPT-2's tokeniser: any text is Hugging Face's tokens, and comes back; so do its files."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from jaxdl.data import load_tokenizer
from jaxdl.data.gpt2_tokenizer import GPT2Tokenizer
from jaxdl.errors import UserError

TEXT = "The cat's mat!! 12 345 isn't\n\n    there: naïve Füße, 日本語 #versioned the## cat##\t\r\n"
SPECIAL = "<|endoftext|>"
quickly = settings(max_examples=60, deadline=None)


def trained(special=SPECIAL):
    """Learns a vocabulary from a text, the special token at its end as in GPT-2."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator([TEXT * 3], trainer)
    model = json.loads(inner.to_str())["model"]
    vocab = model["vocab"] | {special: len(model["vocab"])}
    return vocab, [" ".join(merge) for merge in model["merges"]]


VOCAB, MERGES = trained()
GPT2 = GPT2Tokenizer(VOCAB, MERGES)
THEIRS = Tokenizer(models.BPE(VOCAB, [tuple(merge.split()) for merge in MERGES]))
THEIRS.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


@given(text=st.one_of(st.text(), st.text(alphabet="the ca's\n \t!2#é日\u2028", max_size=40)))
@quickly
def test_any_text_has_the_tokens_of_the_library_and_comes_back(text):
    tokens = GPT2.encode(text)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == THEIRS.encode(text).ids
    assert GPT2.decode(tokens) == text


def test_it_is_what_transformers_reads_from_the_same_files(tmp_path):
    transformers = pytest.importorskip("transformers")
    GPT2.write(tmp_path)
    theirs = transformers.GPT2TokenizerFast.from_pretrained(tmp_path)
    text = TEXT * 2 + " \n\n\n  x  \u00a0 I'll 've 'S ½ x² ___ a1b2\u3000。"
    assert GPT2.encode(text).tolist() == theirs(text)["input_ids"]
    assert GPT2.size == len(theirs)
    assert GPT2.specials == {SPECIAL: theirs.eos_token_id}
    tokens = [*range(0, GPT2.size - 1, 3)]  # bytes that are no UTF-8 among them
    assert GPT2.decode(tokens) == theirs.decode(tokens, clean_up_tokenization_spaces=False)
    whole = tmp_path / "whole"
    theirs.save_pretrained(whole)
    assert not (whole / "vocab.json").exists()
    same(GPT2Tokenizer.read(whole), GPT2)


def same(a, b):
    assert a.to_json() == b.to_json()
    assert a.size == b.size
    assert (a.unwritten, a.ends) == (b.unwritten, b.ends)
    np.testing.assert_array_equal(a.encode(TEXT), b.encode(TEXT))


def test_no_text_becomes_the_special_token_and_it_is_no_text():
    end = len(VOCAB) - 1
    assert GPT2.ends == (end,)
    assert GPT2.unwritten == ()  # a model has learnt when to write its end
    assert end not in GPT2.encode(f"{SPECIAL} the {SPECIAL}")
    assert GPT2.decode([end, *GPT2.encode("cat").tolist(), end]) == "cat"
    assert GPT2.decode([0]) == "!"  # which elsewhere is padding


def test_a_network_may_have_more_tokens_than_the_vocabulary():
    wider = GPT2Tokenizer(VOCAB, MERGES, size=len(VOCAB) + 2)
    end = len(VOCAB) - 1
    assert wider.size == end + 3
    assert wider.unwritten == (end + 1, end + 2)
    assert wider.decode([end + 2, 0, end + 1]) == "!"
    for token in (-1, end + 3):
        with pytest.raises(ValueError, match=f"no token {token} in a vocabulary"):
            wider.decode([0, token])
    with pytest.raises(ValueError, match=r"its tokens are \d+, and the network's 9"):
        GPT2Tokenizer(VOCAB, MERGES, size=9)


@pytest.mark.parametrize("size", [None, len(VOCAB) + 5])
def test_it_comes_back_from_its_own_file_and_from_theirs(tmp_path, size):
    tokenizer = GPT2Tokenizer(VOCAB, MERGES, size=size)
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, GPT2Tokenizer)
    same(loaded, tokenizer)
    tokenizer.write(tmp_path)
    same(GPT2Tokenizer.read(tmp_path, size=size), tokenizer)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    GPT2Tokenizer.read(tmp_path, size=size).write(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_merges_are_written_as_the_library_writes_them(tmp_path):
    GPT2.write(tmp_path)
    (tmp_path / "theirs").mkdir()
    THEIRS.model.save(str(tmp_path / "theirs"))
    merges = [(folder / "merges.txt").read_bytes() for folder in (tmp_path, tmp_path / "theirs")]
    assert merges[0] == merges[1]
    assert b"\n# #\n" in merges[0]  # a merge, not a remark
    vocabs = [(folder / "vocab.json").read_text() for folder in (tmp_path, tmp_path / "theirs")]
    ours, theirs = map(json.loads, vocabs)
    assert list(ours.items()) == list(theirs.items())


def test_files_that_are_no_tokeniser_are_told_in_a_line(tmp_path):
    def told(message, **files):
        for name, text in files.items():
            path = tmp_path / name.replace("_", ".")
            path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message) as error:
            GPT2Tokenizer.read(tmp_path)
        assert "\n" not in str(error.value)

    told("has no vocab.json with merges.txt, and no tokenizer.json")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    model = {"type": "BPE", "vocab": VOCAB, "merges": MERGES}
    whole = {"model": model, "pre_tokenizer": byte_level, "normalizer": None, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    same(GPT2Tokenizer.read(tmp_path), GPT2)
    for change, message in [
        ({"model": model | {"type": "WordPiece"}}, "no byte-level BPE"),
        ({"normalizer": {"type": "NFC"}}, "no byte-level BPE"),
        ({"pre_tokenizer": byte_level | {"add_prefix_space": True}}, "splits texts in another way"),
        (
            {"added_tokens": [{"content": "cats", "id": len(VOCAB), "special": False}]},
            "'cats' is added to the vocabulary, and not special",
        ),
        ({"model": {}}, "'type'"),
    ]:
        told(message, tokenizer_json=json.dumps(whole | change))
    gap = {name: i + (i > 7) for name, i in VOCAB.items()}
    fewer = {name: i for name, i in VOCAB.items() if i < len(VOCAB) - 2}
    merges = "\n".join(MERGES)
    told("vocab.json with merges.txt", vocab_json=json.dumps(VOCAB))
    told("are not numbered from 0 to", vocab_json=json.dumps(gap), merges_txt=merges)
    told("it has no token .*, which texts are written with", vocab_json=json.dumps(fewer))
    told("not a tokeniser as GPT-2's", vocab_json="{")
    told("not a tokeniser as GPT-2's", vocab_json='{"a": 0, "b": "c"}')
    told("not a tokeniser as GPT-2's", vocab_json=json.dumps(VOCAB), merges_txt="t h e")
