import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdl.run.classification import Predictions, draw_mistakes, predict_all, table
from jaxdl.run.cli import newest
from jaxdl.run.finish import summary
from jaxdl.run.report import (
    draw_confusion_matrix,
    draw_images,
    draw_learning_curves,
    parameter_table,
)
from jaxdl.run.workdir import Workdir
from jaxdl.train import TrainState
from tests.run.tiny_run import QUICK, TINY, main, open_run

FIELDS = {
    "experiment": str, "dataset": str, "device": str, "steps": int, "parameters": int,
    "train_seconds": float, "examples_per_second": float, "test": dict,
    "classification_report": dict, "confusion_matrix": list,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    # One line a step, so that there is a second interval to trace.
    main(*QUICK, "--log-every", 1, "--ema-decay", 0.9, "--profile", "--workdir", folder)
    return folder


def assert_png(path, least=(200, 200)):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.width >= least[0]
        assert image.height >= least[1]
        assert len(image.convert("L").getcolors()) > 2  # not blank


def test_the_report_has_its_fields_and_flat_final_numbers(run):
    report = json.loads((run / "report.json").read_text())
    assert {name: type(report.get(name)) for name in FIELDS} == FIELDS
    assert report["steps"] == 7
    assert report["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    assert report["dataset"] == "digits"
    assert all(type(value) is float for value in report["test"].values())
    assert report["test"].keys() == {"accuracy", "loss"}


def test_the_numbers_of_the_report_agree_with_one_another(run):
    report = Workdir(run).report()
    matrix = np.array(report["confusion_matrix"])
    assert matrix.sum() == 359  # every test example once
    assert report["test"]["accuracy"] == pytest.approx(np.trace(matrix) / 359, abs=1e-12)
    assert report["classification_report"]["accuracy"] == report["test"]["accuracy"]


def test_the_figures_are_pictures(run):
    names = {path.name for path in (run / "figures").iterdir()}
    assert names == {"inputs.png", "learning_curves.png", "confusion_matrix.png", "mistakes.png"}
    for name in names:
        assert_png(run / "figures" / name)


def test_tensorboard_has_what_the_log_has(run):
    from tensorboardX.proto.event_pb2 import Event

    written = {}
    (path,) = (run / "tensorboard").iterdir()
    data = path.read_bytes()
    while data:  # a record: length, its checksum, the event, its checksum
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            written[event.step, value.tag] = value.simple_value
        data = data[16 + length :]
    logged = {
        (line["step"], f"{line['kind']}/{name}"): np.float32(value)
        for line in Workdir(run).history()
        for name, value in line.items()
        if name not in ("step", "kind")
    }
    assert written == logged


def test_a_profile_is_written_when_asked_for(run):
    assert list((run / "profile").rglob("*.xplane.pb"))


def test_the_exported_model_is_the_averaged_one(run):
    from jaxdl.interop.safetensors import load_model

    state = newest(*open_run(run), None)
    exported = load_model(run / "model").params["fc1"]["kernel"]
    np.testing.assert_array_equal(exported, state.ema["fc1"]["kernel"])
    assert not np.array_equal(exported, state.params["fc1"]["kernel"])


def test_evaluation_gives_the_same_accuracy_whatever_the_size_of_its_batches(run):
    reported = Workdir(run).report()["test"]
    for size in (256, 100, 7):
        session, workdir = open_run(run, eval_batch_size=size, mesh="data=1")
        state = newest(session, workdir, None)
        test = session.evaluator()(state)
        assert test["accuracy"] == reported["accuracy"]
        assert test["loss"] == pytest.approx(reported["loss"], rel=1e-6)


def test_padding_is_left_out_of_the_predictions():
    batches = [
        (np.array([1, 0]), np.array([[0.25, 0.75], [1, 0]]), np.array([True, True])),
        (np.array([1, 0]), np.array([[0.75, 0.25], [9, 9]]), np.array([True, False])),
    ]
    state = TrainState(jnp.int32(0), jax.random.key(0), {}, {}, ())
    found = predict_all(lambda state: batches, state)
    assert found.labels.tolist() == [1, 0, 1]
    assert found.classes.tolist() == [1, 0, 0]


def test_a_figure_of_no_mistakes_and_one_of_long_names_are_drawn(tmp_path):
    source = [{"image": np.full((5, 5, 3), i * 60, np.uint8)} for i in range(3)]
    right = Predictions(np.array([0, 1, 0]), np.eye(2, dtype=np.float32)[[0, 1, 0]])
    wrong = Predictions(np.array([1, 0, 1]), right.probabilities)
    names = ["a class with a rather long name", "another one of the same kind"]
    for predictions in (right, wrong):
        draw_mistakes(predictions, source, names, tmp_path / "mistakes.png")
        assert_png(tmp_path / "mistakes.png")


def test_a_confusion_matrix_of_many_classes_and_of_an_empty_class_is_drawn(tmp_path):
    matrix = np.diag(np.arange(35))
    draw_confusion_matrix(matrix, [f"class {i}" for i in range(35)], tmp_path / "m.png")
    assert_png(tmp_path / "m.png")


def test_learning_curves_are_drawn_with_gaps_and_without_a_line_of_training(tmp_path):
    tests = [{"step": n, "kind": "evaluation", "loss": x, "train_loss": 1.0}
             for n, x in ((1, 0.5), (2, None), (3, 0.25))]  # fmt: skip
    trains = [{"step": 1, "kind": "train", "loss": None, "learning_rate": 0.1}]
    for history in (tests, [*trains, *tests]):
        draw_learning_curves(history, tmp_path / "curves.png")
        assert_png(tmp_path / "curves.png")


def test_a_sheet_of_images_keeps_its_rows_where_there_are_few(tmp_path):
    draw_images(np.zeros((6, 4, 4, 1)), list("abcdef"), tmp_path / "few.png", columns=3)
    with Image.open(tmp_path / "few.png") as image:
        assert image.height > 300  # two rows of three


def test_the_table_lists_every_parameter_once():
    params = {"a": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}, "scale": np.zeros(())}
    text = parameter_table(params)
    assert "kernel 2x3" in text
    assert "scale scalar" in text
    assert text.split()[-1] == "10"


def test_a_matrix_of_counts_is_a_table_with_names():
    assert table(np.array([[10, 2], [0, 3]]), ["no", "yes"]).split() == [
        "no", "yes", "no", "10", "2", "yes", "0", "3"
    ]  # fmt: skip
    assert summary({"accuracy": 0.5, "loss": 1.0}) == "test accuracy 0.5000, test loss 1.0000"


@pytest.mark.slow
def test_a_run_of_one_interval_has_nothing_to_trace_and_says_so(tmp_path, capsys):
    main(*TINY, "--epochs", 0.2, "--save-minutes", 9, "--profile", "--workdir", tmp_path)
    assert "profile   the first interval was the last" in capsys.readouterr().out


def test_the_summary_of_a_report_tells_a_number_that_was_not_finite():
    assert summary({"loss": 0.5, "accuracy": None}) == "test loss 0.5000, test accuracy nan"
