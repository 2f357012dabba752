import json
import subprocess
from pathlib import Path

import pytest

from jaxdl.errors import UserError
from jaxdl.run import workdir as module
from jaxdl.run.workdir import Workdir, write_text
from tests.run.tiny_run import snapshot

RUN = {"experiment": "e", "identity": {"seed": 0}, "overwrite": False}
CLAIM = {**RUN, "preset": "p", "config": {"seed": 0}}


def begin(folder, **changes):
    with Workdir(folder).claimed(**{**CLAIM, **changes}):
        pass
    return Workdir(folder)


def test_a_folder_holds_its_config_versions_and_commit(tmp_path):
    about = begin(tmp_path / "a" / "b").config()
    assert about["config"] == {"seed": 0}
    assert about["preset"] == "p"
    assert {"python", "jax", "jaxlib", "flax", "numpy"} <= about["versions"].keys()
    assert about.keys() >= {"experiment", "git_commit"}


def test_the_same_run_is_taken_up_and_its_config_left_as_it_was(tmp_path):
    first = (begin(tmp_path).path / "config.json").read_bytes()
    begin(tmp_path, preset="another", config={"seed": 0, "keep": 3})
    assert (tmp_path / "config.json").read_bytes() == first


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"identity": {"seed": 7}}, "--seed 0 there, 7 now"),
        ({"experiment": "f"}, "holds a run of e, not of f"),
    ],
)
def test_another_run_is_refused_naming_what_differs_and_nothing_is_lost(change, told, tmp_path):
    begin(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=told):
        begin(tmp_path, **change)
    assert snapshot(tmp_path) == before


def test_a_folder_that_is_no_run_is_refused_even_to_overwrite(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="no run of jaxdl"):
            begin(tmp_path, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "theirs",
    ["[]", "null", "{}", "7", '{"model": "MLP", "config": {}, "about": {}}', '{"experiment": "e"}'],
)
def test_a_folder_with_another_programs_config_is_no_run_and_nothing_in_it_is_deleted(
    theirs, tmp_path
):
    (tmp_path / "config.json").write_text(theirs)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "thesis.tex").write_text("ten years")
    before = snapshot(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(UserError, match="no run of jaxdl"):
            begin(tmp_path, overwrite=overwrite)
    assert snapshot(tmp_path) == before


def test_overwrite_deletes_what_a_run_writes_and_nothing_else(tmp_path):
    workdir = begin(tmp_path)
    for name in ("tensorboard", "checkpoints", "figures", "samples", "model", "judge", "profile"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "old").touch()
    workdir.log({"step": 1, "kind": "train"})
    workdir.write_report({"test": {"loss": 1.0}})
    for name in ("report.json.tmp", "metrics.jsonl.tmp"):  # a kill left them
        (tmp_path / name).touch()
    (tmp_path / "notes").mkdir()
    for mine in ("notes.md", "notes/1.md"):
        (tmp_path / mine).touch()
    begin(tmp_path, overwrite=True, experiment="f")
    assert {str(path) for path in snapshot(tmp_path)} == {
        ".lock", "config.json", "notes.md", "notes/1.md"
    }  # fmt: skip
    assert workdir.config()["experiment"] == "f"


def test_overwrite_deletes_the_run_and_takes_another(tmp_path):
    workdir = begin(tmp_path)
    workdir.write_report({"test": {}})
    (workdir.figures / "a.png").touch()
    begin(tmp_path, overwrite=True, experiment="f")
    assert workdir.config()["experiment"] == "f"
    assert workdir.report() is None
    assert not list(workdir.figures.iterdir())


def test_a_run_killed_while_it_is_overwritten_is_not_complete_but_still_a_run(
    tmp_path, monkeypatch
):
    begin(tmp_path).write_report({"test": {}})

    def killed(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path, overwrite=True)
    assert Workdir(tmp_path).report() is None
    Workdir(tmp_path).check(**RUN)


def test_a_run_killed_when_it_is_all_but_overwritten_is_still_a_run_beside_other_files(
    tmp_path, monkeypatch
):
    begin(tmp_path)
    (tmp_path / "notes.md").touch()

    def killed(path, value):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            begin(tmp_path, overwrite=True)
    begin(tmp_path)


def test_a_run_killed_before_it_had_a_config_can_begin_again(tmp_path, monkeypatch):
    def killed(path, value):
        path.with_name(path.name + ".tmp").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            begin(tmp_path)
    begin(tmp_path)


def test_a_folder_in_use_is_refused_and_is_free_again_afterwards(tmp_path):
    with Workdir(tmp_path).claimed(**CLAIM):
        before = snapshot(tmp_path)
        with pytest.raises(UserError, match="in use by another process"):
            begin(tmp_path, overwrite=True)
        assert snapshot(tmp_path) == before
    begin(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"--workdir .* cannot be used: Not a directory"):
            begin(path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def denied(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", denied)  # root, who may run this, is denied nothing
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        begin(tmp_path / "new")


def test_damaged_files_are_told_by_name(tmp_path):
    workdir = begin(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(UserError, match=r"report\.json cannot be read"):
        workdir.report()
    (tmp_path / "config.json").write_text('{"a"')
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        workdir.config()


def test_rewinding_forgets_what_comes_again_and_what_a_kill_tore(tmp_path):
    workdir = begin(tmp_path)
    for step, kind in ((7, "train"), (10, "evaluation"), (14, "train"), (20, "evaluation")):
        workdir.log({"step": step, "kind": kind, "loss": 1 / 3})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "kind": "tr')
    workdir.rewind(20, evaluated=10)
    assert [(x["step"], x["loss"]) for x in workdir.history()] == [
        (7, 1 / 3),
        (10, 1 / 3),
        (14, 1 / 3),
    ]
    workdir.rewind(0, evaluated=0)
    assert workdir.history() == []


@pytest.mark.parametrize(
    "line", ["7", "null", "[]", "{}", '{"step": 1}', '{"step": "1", "kind": "train"}', "\0\0"]
)
def test_rewinding_forgets_a_line_that_is_no_record(line, tmp_path):
    workdir = begin(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(f'{line}\n{{"step": 7, "kind": "train"}}\n')
    workdir.rewind(20, evaluated=10)
    assert workdir.history() == [{"step": 7, "kind": "train"}]


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"test": 7}'])
def test_a_report_without_numbers_is_not_taken_for_a_complete_run(text, tmp_path):
    workdir = begin(tmp_path)
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(UserError, match=r"report\.json is no report of a run: delete it"):
        workdir.report()


@pytest.mark.parametrize("path", ["gs://bucket/run", Path("s3://bucket/run")])
def test_a_url_is_no_folder(path):
    with pytest.raises(UserError, match="names no local folder"):
        Workdir(path)


def test_a_number_that_is_not_finite_is_null_so_that_the_log_stays_json(tmp_path):
    workdir = begin(tmp_path)
    workdir.log({"step": 1, "kind": "train", "loss": float("nan"), "worse": [float("inf"), 2.0]})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    strict = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert strict == {"step": 1, "kind": "train", "loss": None, "worse": [None, 2.0]}


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_text(path, "old")

    def killed(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new, and half of it")
    assert path.read_text() == "old"


def test_an_installed_package_does_not_claim_the_commit_of_the_checkout_around_it(
    tmp_path, monkeypatch
):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    inside = tmp_path / "site-packages" / "workdir.py"
    inside.parent.mkdir()
    inside.touch()
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    monkeypatch.setattr(module, "__file__", str(inside))
    assert module.git_commit() is None
    subprocess.run([*git, "add", str(inside)], check=True)
    assert module.git_commit().endswith("-dirty")
