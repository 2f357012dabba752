"""Questions and answers: a run from a file of them, its numbers, and its mistakes."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.language_modeling import PRESETS, SCRIPT, build
from jaxdl.data.pair_pipeline import END
from jaxdl.data.pairs import Pair
from jaxdl.errors import UserError
from jaxdl.run.answering import answer, report_answers
from jaxdl.run.writing import load_writer

TINY = (
    "questions", "--width", "32", "--layers", "1", "--length", "32", "--batch-size", "4",
    "--eval-batch-size", "8", "--epochs", "40", "--warmup", "5", "--eval-every", "1000",
    "--mesh", "data=1",
)  # fmt: skip


def main(*arguments):
    SCRIPT.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "letters.jsonl"
    lines = [{"prompt": f"after {a}{b}?", "answer": f"{chr(ord(b) + 1)}"}
             for a in "abcdefgh" for b in "abcdefghij"]  # fmt: skip
    lines[1]["prompt"] = f"after {40 * 'a'}b?"  # which validates, and does not fit a row
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    main(*TINY, "--file", file, "--workdir", folder)
    return folder


def test_what_can_be_learnt_is_answered(run, capsys):
    report = json.loads((run / "report.json").read_text())
    assert set(report["test"]) == {"loss", "accuracy", "exact_match"}
    assert report["test"]["exact_match"] >= 0.75  # of four, all held out
    capsys.readouterr()
    main("answer", "--workdir", run, "after cd?", "after hi?")
    assert capsys.readouterr().out == "e\nj\n"
    last = max((run / "samples").iterdir(), key=lambda path: int(path.stem))
    assert last.read_text().startswith("after ")


def test_an_answer_does_not_depend_on_those_beside_it(run):
    writer = load_writer(run)
    texts = ["after a b c d?", "after cd?", "x"]
    assert answer(writer, texts) == [answer(writer, [text])[0] for text in texts]


def test_an_answer_ends_where_a_row_of_the_training_does(run):
    writer = load_writer(run)
    table = writer.params["embed"]["embedding"].copy()
    table[writer.tokenizer.specials[END]] = 0  # a logit of 0, which others are above
    endless = writer._replace(params=writer.params | {"embed": {"embedding": table}})
    texts = ["after cd?", "x", 30 * "y", 31 * "z"]
    answers = answer(endless, texts)
    for text, given in zip(texts, answers, strict=True):
        # The question, its "<s>" and the answer, whose last token is not read.
        assert len(writer.tokenizer.encode(text)) + 1 + len(given) == 32 + 1
    assert answers == [answer(endless, [text])[0] for text in texts]


def test_a_question_that_the_model_cannot_see_is_told(run, capsys):
    with pytest.raises(SystemExit) as leaving:
        main("answer", "--workdir", run, 32 * "z")
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert error == "error: a question of 33 tokens is too long: the model sees 32\n"


def test_mistakes_are_counted_and_shown(capsys):
    pairs = [Pair("1 + 1?", "2"), Pair("2 + 2?", "4"), Pair("3 + 3?", "6")]
    report = report_answers(pairs, ["2", "4 ", "6"])
    assert report["test"]["exact_match"] == pytest.approx(2 / 3)
    assert report["wrong"] == [{"question": "2 + 2?", "answer": "4", "given": "4 "}]
    assert "1 of 3 answers are wrong" in capsys.readouterr().out
    assert report_answers(pairs, ["2", "4", "6"])["test"]["exact_match"] == 1


def test_loss_counts_answers_and_nothing_else(file):
    corpus = build(dataclasses.replace(PRESETS["questions"], file=file, length=32)).test
    batch = corpus.assemble(
        *jax.tree.map(jnp.asarray, (dict(corpus.arrays), dict(corpus.batch(0))))
    )
    assert int(np.asarray(batch["mask"]).sum()) == 2 * 4  # a letter and an end, of four questions


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tokenizer": "char"}, "--tokenizer must be bpe for questions"),
        ({"network": "lstm"}, "--network must be a transformer, gpt2 or modern, for questions"),
        ({"vocabulary": 258}, "--vocabulary must be above 258 for questions"),
        ({"validation_file": Path("a")}, "--validation-file needs --corpus file beside it, got a"),
        ({"corpus": "stdlib", "feed": "streams"}, "--feed must be windows for a transformer"),
    ],
)
def test_what_cannot_go_together_is_refused(changes, told):
    with pytest.raises(UserError, match=re.escape(told)):
        dataclasses.replace(PRESETS["questions"], **changes)


def test_questions_that_fit_no_row_are_told(file, capsys):
    config = dataclasses.replace(PRESETS["questions"], file=file)
    with pytest.raises(UserError, match="no question with its answer fits --length 5"):
        build(dataclasses.replace(config, length=5))
