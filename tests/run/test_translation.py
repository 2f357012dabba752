"""Translation: a run from files to sentences, its numbers, its averages, and its mistakes."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.translation import PRESETS, SCRIPT, Config, build
from jaxdl.data.pair_pipeline import END
from jaxdl.data.pairs import Pair, pair_files
from jaxdl.errors import UserError
from jaxdl.interop.safetensors import load_model
from jaxdl.interop.stacks import scanned
from jaxdl.run.averaging import averaged, last_evaluations
from jaxdl.run.cli import from_json, newest
from jaxdl.run.experiment import Session
from jaxdl.run.translation import ROOM, load_interpreter
from jaxdl.run.translation_report import attention_map, report_translations
from jaxdl.run.workdir import Workdir

TINY = (
    "files", "--width", "32", "--layers", "1", "--heads", "2", "--vocabulary", "300", "--length",
    "24", "--batch-size", "8", "--eval-batch-size", "8", "--epochs", "8", "--warmup", "2",
    "--learning-rate", "0.01", "--ema-decay", "0.9", "--eval-every", "20", "--keep", "4",
    "--beam", "1", "--dropout", "0", "--mesh", "data=1",
)  # fmt: skip
NUMBERS = ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]


def main(*arguments):
    SCRIPT.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translation")
    numbers = [f"{n:03}" for n in range(600)]
    (folder / "a.de").write_text("".join(f"{' '.join(NUMBERS[int(d)] for d in n)}\n"
                                         for n in numbers))  # fmt: skip
    (folder / "a.num").write_text("".join(f"{n}\n" for n in numbers))
    return "--source", folder / "a.de", "--target", folder / "a.num"


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    main(*TINY, *files, "--workdir", folder)
    return folder


@pytest.fixture(scope="module")
def interpreter(run):
    return load_interpreter(run)


def test_a_run_reports_loss_bleu_and_exact_match_with_the_signature(run, files, interpreter):
    report = json.loads((run / "report.json").read_text())
    assert set(report["test"]) == {"loss", "accuracy", "bleu", "exact_match"}
    held_out = pair_files(files[1], files[3]).test
    written = interpreter.translate([pair.source for pair in held_out])
    right = [a == pair.target for a, pair in zip(written, held_out, strict=True)]
    assert report["test"]["exact_match"] == pytest.approx(np.mean(right))
    assert 0.4 <= report["test"]["exact_match"] < 1
    names = "sources", "references", "translations"
    lines = zip(*((run / "samples" / f"{name}.txt").read_text().split("\n") for name in names),
                strict=True)  # fmt: skip
    expected = [(pair.source, pair.target, a) for pair, a in zip(held_out, written, strict=True)]
    assert [*lines] == [*expected, ("", "", "")]
    assert report["sacrebleu"].startswith("nrefs:1|case:mixed")
    assert report["worst"]
    assert report["tokens_per_second"] > 0
    figures = {path.name for path in (run / "figures").iterdir()}
    assert figures == {"learning_curves.png", "attention.png"}
    shown = (run / "samples" / f"{report['steps']}.txt").read_text().splitlines()
    assert len(shown) == 36
    assert shown[0].startswith("null null eins")


def test_a_translation_does_not_depend_on_those_beside_it(interpreter):
    texts = ["acht", "eins zwei drei vier fünf sechs sieben acht neun", "drei vier", "neun neun"]
    for beam in (1, 3):
        together = interpreter.translate(texts, beam=beam, batch_size=3)
        alone = [interpreter.translate([text], beam=beam)[0] for text in texts]
        assert together == alone


@pytest.mark.parametrize("beam", [1, 3])
def test_what_never_ends_is_cut_by_the_length_of_its_own_source(interpreter, beam):
    table = interpreter.params["embed"]["embedding"].copy()
    table[interpreter.tokenizer.specials[END]] = 0  # a logit of 0, which others are above
    endless = interpreter._replace(params=interpreter.params | {"embed": {"embedding": table}})
    texts = ["eins", " ".join(3 * NUMBERS)]
    together = endless.translate(texts, beam=beam)
    assert together == [endless.translate([text], beam=beam)[0] for text in texts]
    assert all(len(text) > ROOM / 2 for text in together)


def test_the_length_penalty_favours_long_translations(interpreter):
    texts = [" ".join(NUMBERS[n : n + 3]) for n in range(6)]
    short, long = (interpreter.translate(texts, beam=4, alpha=alpha) for alpha in (0.0, 20.0))
    assert short != long
    assert all(len(a) <= len(b) for a, b in zip(short, long, strict=True))


def test_a_map_of_attention_shows_each_piece_and_weights_that_sum_to_one(interpreter):
    heard, said, weights = attention_map(interpreter, "drei vier", "34")
    assert "".join(heard) == "drei vier</s>"
    assert "".join(said) == "34</s>"
    assert weights.shape == (len(said), len(heard))
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    stacked = {side: scanned(interpreter.params[side]) for side in ("encoder", "decoder")}
    by_scan = interpreter._replace(
        model=interpreter.model.clone(scan=True), params=interpreter.params | stacked
    )
    again = attention_map(by_scan, "drei vier", "34")[2]
    np.testing.assert_allclose(again, weights, rtol=1e-4, atol=1e-6)


def test_perfect_translations_are_worth_100_and_others_are_told(capsys):
    pairs = [Pair(f"q{n}", f"the answer to this one is {n}") for n in range(5)]
    right = [pair.target for pair in pairs]
    perfect = report_translations(pairs, right, lowercase=False)
    assert perfect["test"] == {"bleu": pytest.approx(100), "exact_match": 1}
    assert perfect["worst"] == []
    capsys.readouterr()
    some = report_translations(pairs, [*right[:3], "nothing", "The answer to this one is 4"],
                               lowercase=True)  # fmt: skip
    assert some["test"]["exact_match"] == 0.6
    assert 0 < some["test"]["bleu"] < 100
    assert "case:lc" in some["sacrebleu"]
    assert [entry["source"] for entry in some["worst"]] == ["q3", "q4"]  # the worst first
    assert "nothing" in capsys.readouterr().out


def test_the_average_is_the_mean_of_the_last_weights(run, capsys):
    workdir = Workdir(run)
    config = from_json(Config, workdir.config()["config"])
    session = Session.start(build(config), config)
    weights = [newest(session, workdir, step).weights for step in (80, 90)]
    expected = jax.tree.map(lambda a, b: (np.asarray(a) + np.asarray(b)) / 2, *weights)
    steps, mean = averaged(session, workdir, 2)
    assert steps == [80, 90]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mean.weights, expected)
    before, report = load_interpreter(run).params, workdir.report()
    main("average", "--workdir", run, "--last", 2)
    out = capsys.readouterr().out
    exported = load_interpreter(run).params
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), exported, mean.weights)
    assert any(map(lambda a, b: (a != b).any(), *map(jax.tree.leaves, (exported, before))))
    told = load_model(workdir.model).about["average"]
    assert told["steps"] == steps
    assert set(told["test"]) == set(report["test"])
    assert told["test"] != report["test"]
    assert f"mean after steps [80, 90]: test accuracy {told['test']['accuracy']:.4f}" in out
    section = workdir.report().pop("average")
    assert workdir.report() == report | {"average": section}
    assert told.items() <= section.items()
    assert section["sacrebleu"] == report["sacrebleu"]


def test_a_run_in_use_by_another_process_is_not_averaged(run, capsys):
    with Workdir(run).locked(), pytest.raises(SystemExit, match="2"):
        main("average", "--workdir", run)
    (line,) = capsys.readouterr().err.splitlines()
    assert "is in use by another process" in line


def test_what_is_averaged_is_a_matter_of_the_config_whatever_else_was_saved():
    config = SimpleNamespace(eval_every=20, epochs=1, batch_size=1)
    session = Session(SimpleNamespace(train=SimpleNamespace(examples=90)), config, None)
    saved = [20, 60, 75, 80, 90]
    assert last_evaluations(session, saved, 3) == [60, 80, 90]
    assert last_evaluations(session, [20, 40, 55], 2) == [20, 40]  # the run is not at its end
    for last, message in [
        (4, "are of steps [40, 60, 80, 90], and no checkpoint of [40] is there"),
        (6, "--last 6: the run has 5 evaluations, at [20, 40, 60, 80, 90]"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            last_evaluations(session, saved, last)
    with pytest.raises(UserError, match="the run has 0 evaluations"):
        last_evaluations(session, [], 1)


def test_translate_prints_a_line_a_text(run, capsys):
    capsys.readouterr()
    main("translate", "--workdir", run, "--beam", 2, "eins zwei", "drei")
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("translate",), "needs a sentence"),
        (("translate", " "), "needs a sentence"),
        (("translate", "x", "--beam", "0"), "--beam must be at least 1"),
        (("translate", "x", "--alpha", "-1"), "--alpha must be 0 or more"),
        (("average", "--last", "0"), "--last must be at least 1"),
        (("average", "--last", "9"), "the run has 5 evaluations, at [20, 40, 60, 80, 90]"),
        (("average", "--last", "5"), "no checkpoint of [20] is there"),
        (("average", "--mesh", "data=9"), "--mesh: {'data': 9} does not fit the 8 device(s) here"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments, told, run, capsys):
    verb, *rest = arguments
    with pytest.raises(SystemExit) as leaving:
        main(verb, "--workdir", run, *rest)
    assert leaving.value.code == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert told in error[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vocabulary": 100}, "--vocabulary must be above 259"),
        ({"length": 1}, "--length must be above 1"),
        ({"beam": 0}, "--beam must be above 0"),
        ({"alpha": -0.5}, "--alpha must be 0 or more"),
        ({"source": Path("a")}, "--source needs --pairs files beside it, got a"),
        ({"target": Path("a")}, "--target needs --pairs files beside it, got a"),
        ({"hidden": 0}, "--hidden must be above 0"),
        ({"width": 20, "heads": 4}, "--width must be a multiple of 2 x --heads, 8"),
        ({"label_smoothing": 1.0}, "--label-smoothing must lie in"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(changes, told):
    with pytest.raises(UserError, match=re.escape(told)):
        dataclasses.replace(PRESETS["dates"], **changes)


def test_files_are_needed_and_have_to_fit(files, tmp_path, capsys):
    with pytest.raises(UserError, match="--source FILE and --target FILE"):
        build(Config(pairs="files"))
    with pytest.raises(UserError, match="no training pair fits --length 2"):
        build(Config(pairs="files", source=files[1], target=files[3], length=2))
    longer = tmp_path / "longer.de"
    lines = files[1].read_text().splitlines()
    longer.write_text("".join(f"{' '.join([line] * (1 + n % 3 * 2))}\n"
                              for n, line in enumerate(lines)))  # fmt: skip
    capsys.readouterr()
    experiment = build(Config(pairs="files", source=longer, target=files[3], length=11))
    assert "training pairs have 11 tokens or more: left out" in capsys.readouterr().out
    assert 0 < experiment.train.pairs < 540
    assert experiment.test.pairs == 30  # those tested on are all there, however long


def test_a_run_from_before_an_option_came_is_still_that_run(run, files, capsys):
    path = run / "config.json"
    about = json.loads(path.read_text())
    about["config"] = {k: v for k, v in about["config"].items() if k not in ("alpha", "hidden")}
    path.write_text(json.dumps(about))
    main(*TINY, *files, "--workdir", run)
    assert "is complete" in capsys.readouterr().out
