"""Questions: only the answer counts, what is held out is not trained on, mistakes are told."""

import datetime
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.data.pair_pipeline import encode_pairs, joint_bpe
from jaxdl.data.questions import PackedQuestions, question_file, question_prompt, questions
from jaxdl.errors import UserError

LENGTH = 64


@pytest.fixture(scope="module")
def asked():
    return questions()


@pytest.fixture(scope="module")
def tokenizer(asked):
    return joint_bpe(asked.test, size=300)


def test_answers_are_right(asked):
    sums = days = 0
    for question, answer in (*asked.test, *asked.validation, *asked.train[:3000]):
        if question.startswith("What is"):
            a, sign, b = question.removeprefix("What is ").removesuffix("?").split()
            assert int(answer) == int(a) + int(b) * {"+": 1, "-": -1}[sign]
            sums += 1
        else:
            *words, day = question.removesuffix("?").split()
            apart = (datetime.date.fromisoformat(answer) - datetime.date.fromisoformat(day)).days
            assert abs(apart) == (7 if "week" in words else 1)
            assert (apart > 0) == ("after" in words)
            days += 1
    assert min(sums, days) > 1000


def test_no_question_is_in_two_splits(asked):
    splits = [{pair.source for pair in split} for split in (asked.train, asked.validation,
                                                            asked.test)]  # fmt: skip
    assert len(set.union(*splits)) == sum(map(len, splits)) == 40_000
    assert all(len(split) > 1500 for split in splits)


@pytest.mark.parametrize("seed", [None, 2])
def test_the_answer_alone_counts_and_every_answer_once(asked, tokenizer, seed):
    pairs = asked.test[:50]
    encoded = encode_pairs(pairs, tokenizer)
    specials = tokenizer.specials
    rows = PackedQuestions(encoded, 3, length=LENGTH, specials=specials, seed=seed)
    read = []
    for step in range(len(rows)):
        given = jax.tree.map(jnp.asarray, (dict(rows.arrays), rows.batch(step)))
        batch = jax.device_get(rows.assemble(*given))
        assert {array.shape for array in batch.values()} == {(3, LENGTH)}
        for tokens, segments, targets, mask in zip(
            *(batch[name] for name in ("tokens", "segments", "targets", "mask")), strict=True
        ):
            assert not mask[segments == 0].any()
            for segment in sorted({*segments[mask]}):
                here = segments == segment
                begin = int(np.flatnonzero(tokens[here] == specials["<s>"])[0])
                np.testing.assert_array_equal(mask[here], np.arange(here.sum()) >= begin)
                np.testing.assert_array_equal(tokens[here][1:], targets[here][:-1])
                answer = targets[here][begin:]
                assert answer[-1] == specials["</s>"]
                prompt = tokens[here][: begin + 1]
                question = tokenizer.decode(prompt)
                expected = question_prompt(tokenizer.encode(question), specials)
                np.testing.assert_array_equal(prompt, expected)
                read.append((question, tokenizer.decode(answer)))
    if seed is None:
        assert sorted(read) == sorted(pairs)
    else:  # the last batch goes on with the next epoch
        assert set(read) == set(pairs)


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_file_of_json_lines_is_read(tmp_path):
    lines = [json.dumps({"prompt": f"ask {n}", "answer": str(n)}) for n in range(40)]
    data = question_file(write(tmp_path / "q.jsonl", [*lines, lines[0], ""]))
    assert data.test == [("ask 0", "0"), ("ask 20", "20")]
    assert len(data.train) == 36


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_ends_at_a_line_feed_alone(tmp_path, end):
    """JSON lets U+2028 and U+0085 stand in a string as they are."""
    lines = [
        json.dumps({"prompt": f"ask\u2028{n}", "answer": f"{n}\x85"}, ensure_ascii=False)
        for n in range(20)
    ]
    (tmp_path / "q.jsonl").write_bytes(end.join([*lines, ""]).encode())
    data = question_file(tmp_path / "q.jsonl")
    assert data.test == [("ask\u20280", "0\x85")]
    assert len(data.train) == 18


@pytest.mark.parametrize(
    "line", ["prompt: x", "[1]", "3", '{"prompt": "x"}', '{"prompt": "x", "answer": ""}',
             '{"prompt": "x", "answer": 3}'],
)  # fmt: skip
def test_a_line_that_is_no_question_is_told_by_its_number(line, tmp_path):
    good = [json.dumps({"prompt": f"ask {n}", "answer": str(n)}) for n in range(30)]
    with pytest.raises(UserError, match=r"q\.jsonl, line 8"):
        question_file(write(tmp_path / "q.jsonl", [*good[:7], line, *good[7:]]))


def test_too_few_lines_are_told(tmp_path):
    with pytest.raises(UserError, match="1 different lines are too few"):
        question_file(write(tmp_path / "q.jsonl", ['{"prompt": "x", "answer": "y"}'] * 50))
