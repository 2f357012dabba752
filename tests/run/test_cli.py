"""The command line: mistakes cost one line, status 2, and nothing that was there."""

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import experiments.image_classification as experiment
from jaxdl.data import ArraySource, ImageDataset, digits
from jaxdl.run.cli import plain
from jaxdl.run.workdir import Workdir
from tests.run.killed import draw_nothing
from tests.run.tiny_run import QUICK, ROOT, TINY, main, refused, saved_steps, snapshot


@pytest.fixture(autouse=True, scope="module")
def _no_figures():
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch.setattr)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a few steps."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    main(*QUICK, "--workdir", folder)
    return folder


@pytest.fixture
def unfinished(run):
    """The same run, as if it had been killed before its report; to be left as it is."""
    report = (run / "report.json").read_bytes()
    (run / "report.json").unlink()
    before = snapshot(run)
    yield run
    assert snapshot(run) == before
    (run / "report.json").write_bytes(report)


@pytest.fixture
def pictures(tmp_path):
    """Makes a folder of two classes, four pictures each, in both splits."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--batch-sise", "3"], "no option --batch-sise: did you mean --batch-size?"),
        (["mnst"], "no preset or verb 'mnst': did you mean mnist?"),
        (["qqqq"], "there are digits, mnist, mnist-best, digits-mlp, folder, train, evaluate"),
        (["--epochs", "many"], "--epochs: could not convert string to float: 'many'"),
        (["--epochs"], "Missing value for argument '--epochs'"),
        (["--epochs", "-1"], "--epochs must be above 0, and finite, got -1.0"),
        (["--epochs", "inf"], "--epochs must be above 0, and finite, got inf"),
        (["--learning-rate", "nan"], "--learning-rate must be above 0"),
        (["--warmup", "-1"], "--warmup must be 0 or more, and finite, got -1"),
        (["--seed", "4294967296"], "--seed must be below 2**32"),
        (["--ema-decay", "1"], "--ema-decay must lie between 0 and 1"),
        (["--clip-norm", "0"], "--clip-norm must be above 0"),
        (["--optimizer", "adm"], "Expected one of ('adam', 'adamw', 'sgd', 'rmsprop', 'muon')"),
        (["--widths"], "--widths must be one or more, above 0"),
        (["--image-size", "50"], "--image-size must be a multiple of 4 to halve evenly, got 50"),
        (["--dropout", "1"], "--dropout must lie in [0, 1)"),
        (["--channels", "2"], "--channels"),
        (["--rotation", "200"], "--rotation must lie in [0, 180], got 200.0"),
        (["--folder", "a"], "--folder needs --dataset folder beside it, got a"),
        (["--workdir", "gs://bucket/run"], "names no local folder"),
        (["--seed", "1", "mnist"], "Unrecognized options: mnist"),
        (["evaluate"], "--workdir"),
        (["--workdir", "train", "--keep", "0"], "--keep must be above 0"),
        (["--mesh", "model=2"], "--mesh model=2"),
        (["--mesh", "data=3"], "--batch-size 64 does not split over 3 device(s)"),
        (["--batch-size", "60"], "60 does not split over 8 device(s): use --batch-size 64"),
        (["--accum", "3"], "and 3 microbatches: use --batch-size 72"),
        (["--eval-batch-size", "100"], "--eval-batch-size 100 does not split"),
        (["--dataset", "mnost"], "TFDS has no dataset 'mnost'; did you mean mnist"),
        (["--dataset", "digit"], "(beside TFDS's there is digits)"),
        (["folder"], "--dataset folder needs --folder PATH"),
        (["folder", "--folder", "/no/such"], "/no/such: there is no such folder"),
        (["mnist", "--manual-dir", "/no/such"], "--manual-dir /no/such: there is no such folder"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line_with_status_2_and_leaves_no_folder(
    arguments, told, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert told in refused(capsys, *arguments)
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "train").exists()


def test_a_dataset_that_is_not_prepared_tells_what_preparing_needs(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *a: None if name == "tensorflow" else find(name, *a),
    )
    line = refused(capsys, "mnist", "--data-dir", tmp_path / "tfds", "--workdir", tmp_path / "run")
    assert "needs tensorflow" in line
    assert "pip install" in line
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_batches_of_evaluation_that_other_devices_need(run, capsys):
    main(*QUICK, "--eval-batch-size", 512, "--workdir", run)
    assert "is complete" in capsys.readouterr().out


def test_without_a_device_it_is_told_in_one_line(tmp_path):
    command = [sys.executable, "-m", "experiments.image_classification", *QUICK]
    command += ["--workdir", str(tmp_path / "run")]
    env = os.environ | {"JAX_PLATFORMS": "cuda"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    if done.returncode == 0:
        pytest.skip("there is a GPU here")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: JAX has no devices: ")
    assert not (tmp_path / "run").exists()


def test_a_warmup_that_outlasts_the_run_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxdl.run.train.train", lambda *_: None)
    for warmup, told in ((8, True), (7, False)):
        main(*QUICK, "--warmup", warmup, "--workdir", tmp_path / str(warmup))
        out = capsys.readouterr().out
        assert (f"warmup    ends after the run: {warmup} steps of 7" in out) == told


@pytest.mark.parametrize("change", [("--seed", "1"), ("--widths", "17"), ("--dataset", "mnist")])
def test_another_config_on_the_same_folder_is_refused_naming_the_field(change, unfinished, capsys):
    line = refused(capsys, *QUICK, *change, "--workdir", unfinished)
    assert f"{change[0]} " in line
    assert "now" in line


def test_devices_that_the_batch_does_not_split_over_leave_a_begun_run_as_it_is(unfinished, capsys):
    assert "does not split" in refused(capsys, *QUICK, "--mesh", "data=3", "--workdir", unfinished)


def test_a_label_out_of_range_is_told_with_its_example(unfinished, monkeypatch, capsys):
    def broken():
        arrays = {"image": np.zeros((9, 8, 8, 1), np.uint8), "label": np.arange(9, dtype=np.int32)}
        source = ArraySource(arrays)
        return ImageDataset(name="digits", classes=tuple("01234567"), train=source, test=source)

    monkeypatch.setattr("jaxdl.run.images.digits", broken)
    line = refused(capsys, *QUICK, "--workdir", unfinished)
    assert "example 8 has label 8, outside [0, 8)" in line


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "is empty"), (b"no picture", "cannot be read as an image")]
)
def test_an_empty_or_corrupt_picture_is_told_by_name(content, told, pictures, tmp_path, capsys):
    (pictures / "train" / "dog" / "2.png").write_bytes(content)
    line = refused(capsys, "folder", "--folder", pictures, "--workdir", tmp_path / "run")
    assert f"dog/2.png: {told}" in line
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_by_another_run_is_refused(unfinished, capsys):
    about = Workdir(unfinished).config()
    claim = {"experiment": about["experiment"], "preset": "", "config": {}, "identity": {}}
    with Workdir(unfinished).claimed(**claim, overwrite=False):
        assert "is in use" in refused(capsys, *QUICK, "--workdir", unfinished)


@pytest.mark.parametrize("below", ["", "below"])
def test_a_folder_that_cannot_be_written_is_refused(below, tmp_path, capsys):
    (tmp_path / "file").touch()
    line = refused(capsys, *QUICK, "--workdir", tmp_path / "file" / below)
    assert "cannot be used: Not a directory" in line


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    for verb in ((*QUICK,), (*QUICK, "--overwrite"), ("evaluate",)):
        assert "config.json" in refused(capsys, *verb, "--workdir", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwrite_starts_anew_and_a_mistake_beside_it_deletes_nothing(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    before, test = snapshot(folder), Workdir(run).report()["test"]
    refused(capsys, *QUICK, "--overwrite", "--mesh", "data=3", "--workdir", folder)
    assert snapshot(folder) == before
    main(*QUICK, "--overwrite", "--seed", 1, "--workdir", folder)
    assert Workdir(folder).report()["test"] != test
    assert len(Workdir(folder).history()) == len(Workdir(run).history())


def test_evaluate_gives_the_numbers_of_the_report_and_changes_no_record(run, capsys):
    kept = [run / name for name in ("report.json", "metrics.jsonl", "config.json")]
    before = [path.read_bytes() for path in kept], snapshot(run / "checkpoints")
    capsys.readouterr()
    main("evaluate", "--workdir", run)
    test = Workdir(run).report()["test"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"test accuracy {test['accuracy']:.4f}, test loss {test['loss']:.4f}")
    assert ([path.read_bytes() for path in kept], snapshot(run / "checkpoints")) == before


@pytest.mark.slow
def test_evaluate_takes_an_earlier_checkpoint_and_other_devices(tmp_path, capsys):
    main(*TINY, "--epochs", 0.6, "--save-minutes", 9, "--workdir", tmp_path)
    first, last = saved_steps(tmp_path)
    main("evaluate", "--workdir", tmp_path, "--step", first, "--mesh", "data=2")
    logged = {x["step"]: x for x in Workdir(tmp_path).history() if x["kind"] == "evaluation"}
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith(f"step {first}: test accuracy {logged[first]['accuracy']:.4f}")
    line = refused(capsys, "evaluate", "--workdir", tmp_path, "--step", 3)
    assert f"there are checkpoints of [{first}, {last}]" in line
    assert "does not fit" in refused(capsys, "evaluate", "--workdir", tmp_path, "--mesh", "data=9")


def test_predict_names_the_classes_of_picture_files(run, tmp_path, capsys):
    source = digits().test
    files = []
    for i in range(3):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(source[i]["image"][..., 0]).resize((31, 29)).save(files[-1])
    capsys.readouterr()
    main("predict", *files, "--workdir", run, "--top", 10)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [str(path) for path in files]
    for line in lines:
        classes, probabilities = line.split()[1::2], [float(x) for x in line.split()[2::2]]
        assert sorted(classes) == list("0123456789")
        assert sum(probabilities) == pytest.approx(1, abs=1e-3)
        assert probabilities == sorted(probabilities, reverse=True)


def test_predict_takes_no_model_of_another_kind_and_no_number_of_classes_below_1(
    tmp_path, run, capsys
):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    command = ("predict", tmp_path / "a.png", "--workdir")
    shutil.copytree(run / "model", tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    about = json.loads(config.read_text())
    about["about"] = {"input_shape": about["about"]["input_shape"], "stored_shape": [8, 8, 1]}
    config.write_text(json.dumps(about))
    assert "holds no classifier of images" in refused(capsys, *command, tmp_path)
    assert "--top must be at least 1, got -1" in refused(capsys, *command, run, "--top", -1)


def test_evaluate_where_nothing_may_be_written_is_told(run, monkeypatch, capsys):
    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied", str(run / "confusion_matrix.png"))

    monkeypatch.setattr("jaxdl.run.classification.draw_confusion_matrix", denied)
    line = refused(capsys, "evaluate", "--workdir", run)
    assert line.endswith("confusion_matrix.png: Permission denied")


def test_predict_tells_a_corrupt_picture_a_missing_one_and_none(run, tmp_path, capsys):
    (tmp_path / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n half a picture")
    good = tmp_path / "good.png"
    Image.new("L", (8, 8)).save(good)
    for files, told in (
        ([good, tmp_path / "corrupt.png"], "corrupt.png: cannot be read as an image"),
        ([good, tmp_path / "missing.png"], "missing.png: there is no such file"),
        ([], "predict needs a picture file"),
    ):
        assert told in refused(capsys, "predict", *files, "--workdir", run)


def test_the_verbs_tell_a_folder_without_a_run_or_with_another_experiments(tmp_path, run, capsys):
    assert "holds no run" in refused(capsys, "evaluate", "--workdir", tmp_path)
    assert "no model was exported" in refused(capsys, "predict", "a.png", "--workdir", tmp_path)
    text = (run / "config.json").read_text()
    (tmp_path / "config.json").write_text(text)
    assert "has no checkpoint yet" in refused(capsys, "evaluate", "--workdir", tmp_path)
    (tmp_path / "config.json").write_text(text.replace("image_classification", "translation"))
    assert "is a run of translation" in refused(capsys, "evaluate", "--workdir", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--help"], ["(default: 0.08)", "--batch-size INT", "Presets: digits, mnist"]),
        (["train", "--help"], ["(default: 0.08)"]),
        (["mnist", "--help"], ["(default: 5)", "(default: mnist)"]),
        (["evaluate", "--help"], ["(required)", "--step"]),
        (["predict", "--help"], ["--top INT", "(default: 3)", "Picture files."]),
    ],
)
def test_every_verb_and_preset_has_help_with_defaults(arguments, shown, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(*arguments)
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())  # without the line breaks
    assert not leaving.value.code
    assert [text for text in shown if text not in out] == []


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from experiments.image_classification import SCRIPT\n"
        "try: SCRIPT.main(['--help'])\n"
        "finally:\n"
        "  heavy = {'tensorflow', 'tensorflow_datasets', 'grain', 'matplotlib', 'sklearn'}\n"
        "  print('IMPORTED', heavy & set(sys.modules), file=sys.stderr)\n"
        "  import jax; print(jax._src.xla_bridge.backends_are_initialized(), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.stderr == "IMPORTED set()\nFalse\n"


def test_the_frame_of_a_message_is_taken_off():
    lines = "Error parsing Config: --a must", "be b.", "────", "For full helptext, see x"
    framed = ["╭─ Parsing error ─╮", *(f"│ {line} │" for line in lines), "╰───╯"]
    ascii = [" Parsing error ", "------", *(line.replace("─", "-") for line in lines)]
    assert [plain("\n".join(box)) for box in (framed, ascii)] == ["--a must be b"] * 2
    assert plain("") == "the options cannot be parsed"


def test_another_error_is_not_hidden(tmp_path, monkeypatch):
    def failing(config):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(experiment.SCRIPT.__class__, "_session", lambda *_: failing(None))
    with pytest.raises(OSError, match="Input/output"):
        main(*QUICK, "--workdir", tmp_path)


def test_a_reader_that_leaves_ends_the_run_quietly(tmp_path, monkeypatch, capsys):
    with (tmp_path / "pipe").open("w") as pipe:

        def broken(text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        closed = SimpleNamespace(write=broken, flush=lambda: None, fileno=pipe.fileno)
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit) as leaving:
            main(*QUICK, "--workdir", tmp_path / "run")
    assert leaving.value.code == 1
    assert capsys.readouterr().err == ""


def test_ctrl_c_before_there_is_anything_to_save_ends_quietly(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment.SCRIPT.__class__, "_session", interrupted)
    with pytest.raises(SystemExit) as leaving:
        main(*QUICK, "--workdir", tmp_path)
    assert leaving.value.code == 130
    assert capsys.readouterr().err == ""
