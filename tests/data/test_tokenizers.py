"""Laws of the tokenisers: any text comes back, as a whole, in pieces, and from the disk."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl.data import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    WordTokenizer,
    bpe,
    load_tokenizer,
)
from jaxdl.data.codec import PAD
from jaxdl.data.tokenizers import UNKNOWN
from jaxdl.errors import UserError

TEXT = "The cat sat on the mat.\n\n    Die Katze saß, 日本語: the cat sat <pad> <s>!\r\n" * 3
BPE = BPETokenizer.train(TEXT, size=300, specials=("<s>", "</s>"))
WORD = WordTokenizer.train(TEXT, size=12)
CHAR = CharTokenizer.train(TEXT)
ALL = [ByteTokenizer(), CHAR, WORD, BPE]
OF_ANY_TEXT = [ByteTokenizer(), BPE]

quickly = settings(max_examples=60, deadline=None)
named = pytest.mark.parametrize("tokenizer", ALL, ids=lambda t: type(t).__name__)
of_any_text = pytest.mark.parametrize("tokenizer", OF_ANY_TEXT, ids=lambda t: type(t).__name__)


@of_any_text
@given(text=st.text())
@quickly
def test_any_text_comes_back(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int32
    assert tokenizer.decode(tokens) == text
    assert not tokens.size or (tokens.min() > 0 and tokens.max() < tokenizer.size)


@named
def test_the_training_text_comes_back_but_for_words_left_out(tokenizer):
    tokens = tokenizer.encode(TEXT)
    if tokenizer is not WORD:
        assert tokenizer.decode(tokens) == TEXT
    pieces = WORD.split(TEXT)
    assert "".join(pieces) == TEXT
    expected = "".join(p if p in WORD.pieces else "\ufffd" for p in pieces)
    assert WORD.decode(WORD.encode(TEXT)) == expected


@given(text=st.text(alphabet="ab\n \t.,é_9\u2028"))
@quickly
def test_words_joined_are_the_text_and_none_is_without_end(text):
    assert "".join(WORD.split(text)) == text


@of_any_text
@given(data=st.data())
@quickly
def test_a_stream_is_the_text_however_it_is_cut(tokenizer, data):
    # Any tokens, so also bytes that are no UTF-8, as a network may draw them.
    tokens = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=12))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=4)))
    edges = [0, *cuts, len(tokens)]
    pieces = [tokens[a:b] for a, b in itertools.pairwise(edges)]
    assert "".join(tokenizer.decode_stream(pieces)) == tokenizer.decode(tokens)


def test_a_character_that_is_cut_waits_for_its_end():
    tokens = ByteTokenizer().encode("é!")
    assert list(ByteTokenizer().decode_stream(tokens[:, None])) == ["", "é", "!", ""]
    assert list(ByteTokenizer().decode_stream([tokens[:1]])) == ["", "\ufffd"]


@named
def test_a_saved_tokeniser_is_the_same_again(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer)
    assert loaded.size == tokenizer.size
    assert loaded.to_json() == tokenizer.to_json()
    np.testing.assert_array_equal(loaded.encode(TEXT + "neu"), tokenizer.encode(TEXT + "neu"))
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_file_that_is_no_tokeniser_is_told_in_a_line(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json: there is no such file"):
        load_tokenizer(tmp_path)
    wrong = ["", "[]", "{}", '{"kind": "morse"}', '{"kind": "char"}']
    wrong += ['{"kind": "bpe", "tokenizer": {}}', '{"kind": "char", "pieces": ["a", "a"]}']
    for text in wrong:
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(UserError, match="is not a tokeniser") as told:
            load_tokenizer(tmp_path)
        assert "\n" not in str(told.value)


@named
def test_padding_stands_for_no_text_and_wrong_numbers_are_refused(tokenizer):
    assert tokenizer.decode([PAD, PAD]) == ""
    for token in (-1, tokenizer.size):
        with pytest.raises(ValueError, match=f"no token {token} in a vocabulary"):
            tokenizer.decode([token])
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode([]) == ""


@named
def test_text_that_is_no_unicode_is_refused(tokenizer):
    with pytest.raises(UserError, match="not valid Unicode at character 1"):
        tokenizer.encode("a\udcff")


def test_characters_are_numbered_in_order_and_others_are_unknown():
    tokenizer = CharTokenizer.train("cabbac")
    assert tokenizer.size == 5
    assert tokenizer.encode("abcx").tolist() == [2, 3, 4, UNKNOWN]
    assert tokenizer.decode([2, 1, 4]) == "a\ufffdc"


def test_the_most_frequent_words_are_kept_with_the_space_before_them():
    tokenizer = WordTokenizer.train("a cat, a dog, a cat", size=5)
    assert tokenizer.pieces == (" a", " cat", ",")  # twice each, by the alphabet
    assert tokenizer.encode("the cat").tolist() == [UNKNOWN, 3]
    with pytest.raises(ValueError, match="3 tokens"):
        WordTokenizer.train("a", size=2)


def test_specials_are_numbered_first_and_no_text_becomes_one():
    assert BPE.specials == {"<pad>": 0, "<s>": 1, "</s>": 2}
    assert not set(BPE.encode("<pad> <s> </s>")) & set(BPE.specials.values())
    assert BPE.decode([1, *BPE.encode("cat").tolist(), 2]) == "cat"


@given(text=st.text(alphabet="the cat\n \t.'日\u2028\x1c", max_size=40), size=st.integers(0, 9))
@quickly
def test_a_long_text_cut_into_pieces_has_the_same_tokens(text, size):
    pieces = bpe._cut(text, size)
    assert "".join(pieces) == text
    tokens = [token for piece in pieces for token in BPE.encode(piece)]
    assert tokens == BPE.encode(text).tolist()


def test_byte_pairs_are_learnt_the_same_way_each_time():
    assert BPETokenizer.train(TEXT, size=300, specials=("<s>", "</s>")).to_json() == BPE.to_json()
    assert len(BPE.encode(" the cat sat")) == 3
    with pytest.raises(ValueError, match="needs 258 tokens"):
        BPETokenizer.train(TEXT, size=257, specials=("<s>",))
    with pytest.raises(ValueError, match="is written <name>"):
        BPETokenizer.train(TEXT, size=300, specials=("END",))
