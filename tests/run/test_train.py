"""A run goes on after whatever ended it, and ends as if nothing had."""

import dataclasses
import errno
import pkgutil
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

import experiments.image_classification as experiment
import jaxdl.train.loop
from jaxdl.keys import derive
from jaxdl.metrics import Mean
from jaxdl.run.diagnose import describe_nonfinite
from jaxdl.run.experiment import Session
from jaxdl.run.log import Log
from jaxdl.run.workdir import Workdir
from jaxdl.train.loop import Feed
from tests.run.killed import draw_nothing
from tests.run.tiny_run import (
    QUICK,
    STEPS,
    TINY,
    assert_same_run,
    ended,
    killed_at,
    main,
    saved_steps,
    snapshot,
)

# Accumulation, the averaged weights and a scan have a state, or a chunking, of their own.
VARIANTS = {
    "plain": (),
    "accum and ema": ("--accum", "2", "--ema-decay", "0.9"),
    "scan": ("--scan", "5"),
}


@pytest.fixture(scope="module", autouse=True)
def without_figures():
    """Leaves the figures, which test_report.py looks at, out of these many runs."""
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch.setattr)
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Runs a variant once, without an interruption, and returns its folder."""
    folders = {}

    def run(variant):
        if variant not in folders:
            folder = tmp_path_factory.mktemp("uninterrupted") / "run"
            main(*TINY, *VARIANTS[variant], "--workdir", folder)
            folders[variant] = folder
        return folders[variant]

    return run


def raise_signal_at(monkeypatch, number, *, step=None, evaluation=None):
    """Arranges that a signal comes when `step` is logged, or at a batch of the evaluation."""
    interval, to_host, seen = Log.interval, jaxdl.train.loop.to_host, []

    def logged(log, at, stepping):
        interval(log, at, stepping)
        if at == step:
            signal.raise_signal(number)

    def counted(metrics):
        seen.append(metrics)
        if len(seen) == evaluation:
            signal.raise_signal(number)
        return to_host(metrics)

    monkeypatch.setattr(Log, "interval", logged)
    monkeypatch.setattr(jaxdl.train.loop, "to_host", counted)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_bit_for_bit_as_an_uninterrupted_one(
    tmp_path, uninterrupted
):
    command = (*TINY, "--workdir", tmp_path)
    killed_at("rename:2", *command)  # the second save, whole but not yet in its place
    assert saved_steps(tmp_path) == [7]
    killed_at("evaluation:3", *command)  # in the second evaluation
    killed_at("after:0.3", *command)
    main(*command)
    assert_same_run(tmp_path, uninterrupted("plain"))


@pytest.mark.slow
def test_a_run_killed_while_it_writes_a_checkpoint_loses_only_that_one(tmp_path, uninterrupted):
    command = (*TINY, *VARIANTS["accum and ema"], "--workdir", tmp_path)
    killed_at("save:3", *command)
    assert saved_steps(tmp_path) == [7, 10]
    main(*command)
    assert_same_run(tmp_path, uninterrupted("accum and ema"))


@pytest.mark.parametrize(
    ("variant", "number", "status", "moment"),
    [
        ("plain", signal.SIGTERM, 143, {"step": 14}),
        ("plain", signal.SIGINT, 130, {"evaluation": 4}),
        pytest.param(
            "accum and ema", signal.SIGTERM, 143, {"evaluation": 1}, marks=pytest.mark.slow
        ),
        pytest.param("scan", signal.SIGTERM, 143, {"step": 7}, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_the_same_command_goes_on_bit_for_bit(
    variant, number, status, moment, tmp_path, uninterrupted, monkeypatch, capsys
):
    # Without --save-minutes 0 only the signal makes it save between evaluations.
    command = (*TINY, *VARIANTS[variant], "--save-minutes", 9, "--workdir", tmp_path)
    with monkeypatch.context() as patch:
        raise_signal_at(patch, number, **moment)
        with pytest.raises(SystemExit) as leaving:
            main(*command)
    assert leaving.value.code == status
    assert "interrupted and saved" in capsys.readouterr().out
    stopped = saved_steps(tmp_path)[-1]
    assert 0 < stopped < STEPS
    main(*command)
    assert f"resumed at step {stopped} of {STEPS}" in capsys.readouterr().out
    assert_same_run(tmp_path, uninterrupted(variant))


@pytest.mark.parametrize(
    ("moment", "number", "status"),
    [
        ("jaxdl.run.log.Log.close", signal.SIGINT, 130),  # all is saved
        ("jaxdl.run.finish.draw_learning_curves", signal.SIGTERM, 143),
    ],
)
def test_a_signal_after_the_last_save_leaves_the_report_to_the_same_command(
    moment, number, status, tmp_path, uninterrupted, monkeypatch, capsys
):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted("plain"), run)
    (run / "report.json").unlink()
    function = pkgutil.resolve_name(moment)
    raised = lambda *args: (signal.raise_signal(number), function(*args))  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(moment, raised)
        with pytest.raises(SystemExit) as leaving:
            main(*TINY, "--workdir", run)
    assert leaving.value.code == status
    assert "interrupted and saved: the same command resumes" in capsys.readouterr().out
    assert not (run / "report.json").exists()
    main(*TINY, "--workdir", run)
    assert_same_run(run, uninterrupted("plain"))


@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_an_unusable_newest_checkpoint_is_told_and_the_one_before_is_used(
    damage, tmp_path, uninterrupted, capsys
):
    whole, run = uninterrupted("plain"), tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "report.json").unlink()
    newest = run / "checkpoints" / str(STEPS)
    if damage == "truncated":
        for path in (newest / "state").rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        shutil.rmtree(newest)
        shutil.copytree(uninterrupted("accum and ema") / "checkpoints" / str(STEPS), newest)
    before = saved_steps(run)[-2]
    capsys.readouterr()
    main(*TINY, "--workdir", run)
    out, err = capsys.readouterr()
    assert f"checkpoint {STEPS} is not usable" in out
    assert f"going back to {before}" in out
    assert not err
    assert_same_run(run, whole)
    assert (newest.parent / f"{STEPS}.unusable").is_dir()  # set aside, not deleted


def test_checkpoints_that_are_all_another_models_are_refused_and_kept(
    tmp_path, uninterrupted, capsys
):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted("plain"), run)
    (run / "report.json").unlink()
    shutil.rmtree(run / "checkpoints")
    foreign = uninterrupted("accum and ema")
    shutil.copytree(foreign / "checkpoints", run / "checkpoints")
    before = snapshot(run / "checkpoints")
    line = ended(capsys, 2, *TINY, "--workdir", run)
    assert "ema/" in line
    assert snapshot(run / "checkpoints") == before


def test_a_run_killed_in_its_report_writes_it_when_called_again(tmp_path, uninterrupted):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted("plain"), run)
    (run / "report.json").unlink()
    shutil.rmtree(run / "model")
    main(*TINY, "--workdir", run)
    assert_same_run(run, uninterrupted("plain"))
    assert snapshot(run / "model") == snapshot(uninterrupted("plain") / "model")


def test_the_latest_and_the_best_checkpoint_are_kept_when_the_metric_worsens(tmp_path, monkeypatch):
    def worsening(*_, **__):
        return lambda state, **_: {"loss": 1.0, "accuracy": 1 - int(state.step) / 100}

    monkeypatch.setattr("jaxdl.run.experiment.evaluator", worsening)
    main(*TINY, "--keep", 1, "--save-minutes", 9, "--workdir", tmp_path)
    assert saved_steps(tmp_path) == [10, STEPS]


def test_a_second_call_says_that_the_run_is_complete_and_touches_nothing(
    uninterrupted, capsys, monkeypatch
):
    folder = uninterrupted("plain")
    monkeypatch.setattr("experiments.image_classification.load", None)  # not even the data
    before = (folder / "report.json").stat().st_mtime_ns
    capsys.readouterr()
    main(*TINY, "--workdir", folder)
    out, _ = capsys.readouterr()
    assert "is complete: test accuracy" in out
    assert len(out.splitlines()) == 1
    assert (folder / "report.json").stat().st_mtime_ns == before


def loss_not_finite_at(monkeypatch, step):
    """Makes the training loss of one step NaN, and the gradient of one array with it."""
    make_loss = experiment.make_loss
    poisoned_key = jax.random.key_data(derive(jax.random.key(0), "train", step))

    def poisoned(config, model):
        loss = make_loss(config, model)

        def with_nan(params, model_state, batch, key, *, train):
            value, aux = loss(params, model_state, batch, key, train=train)
            hit = train and (jax.random.key_data(key) == poisoned_key).all()
            nan = jnp.where(hit, jnp.nan, 0) * params["fc2"]["bias"].sum()
            return Mean(value.total + nan, value.count), aux

        return with_nan

    monkeypatch.setattr(experiment, "make_loss", poisoned)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch, capsys
):
    loss_not_finite_at(monkeypatch, 12)
    command = (*TINY, "--workdir", tmp_path)
    line = ended(capsys, 1, *command)
    for part in (
        "step 12 is not finite",
        "learning rate",
        "gradient norm nan",
        "worst layer fc2/bias",
    ):
        assert part in line
    assert saved_steps(tmp_path)[-1] == 10
    assert ended(capsys, 1, *command) == line  # the same command resumes, and finds the same
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("parallel", ["jit", "pmap", "shard_map"])
def test_a_refused_step_is_replayed_as_it_was_over_the_devices_and_with_its_draws(parallel):
    config = dataclasses.replace(
        experiment.PRESETS["digits-mlp"], model="residual", norm="batch", widths=(4,), dropout=0.5,
        mesh="data=2", parallel=parallel,
    )  # fmt: skip
    session, step = Session.start(experiment.build(config), config), 3
    state = session.placement.put(session.initial_state().replace(step=jnp.int32(step)))
    told = describe_nonfinite(session, state, step)
    feed = Feed(session.experiment.train, session.placement)
    batch = feed.put([feed.data.batch(step)], stacked=False)
    program = feed.compile_step(session.train_step(), state)
    _, metrics = program.call(state, feed.arrays, batch)
    loss, norm = (float(metrics[name].compute()) for name in ("loss", "grad_norm"))
    found = re.search(r"step 3 is not finite: loss (\S+), gradient norm (\S+),", told)
    assert [*map(float, found.groups())] == pytest.approx([loss, norm], rel=2e-3)


def test_weights_are_drawn_by_the_program_and_not_by_its_compiler(monkeypatch):
    """Of a key that it is given: one that it knows XLA would go by, number after number."""
    given, wrap = [], jax.random.wrap_key_data
    spied = lambda data: given.append(data) or wrap(data)  # noqa: E731
    monkeypatch.setattr(jax.random, "wrap_key_data", spied)
    config = experiment.PRESETS["digits-mlp"]
    Session.start(experiment.build(config), config).initial_state()
    assert given
    assert all(isinstance(data, jax.core.Tracer) for data in given)


def test_a_loss_that_is_not_finite_is_skipped_by_flag_and_counted(tmp_path, monkeypatch, capsys):
    loss_not_finite_at(monkeypatch, 12)
    main(*TINY, "--nonfinite", "skip", "--save-minutes", 9, "--workdir", tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.startswith("step 14/") for line in lines] == ["refused" in line for line in lines]
    assert "refused 1 of 7 steps" in lines[1]
    logged = [line for line in Workdir(tmp_path).history() if line["kind"] == "train"]
    assert [line["refused"] for line in logged] == [0, 1 / 7, 0, 0]
    assert Workdir(tmp_path).report()["steps"] == STEPS


@pytest.mark.parametrize("text", ["RESOURCE_EXHAUSTED: 9 bytes", "INTERNAL: Out of memory"])
def test_running_out_of_memory_is_answered_with_three_flags(text, tmp_path, monkeypatch, capsys):
    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr("jaxdl.train.loop.Feed.compile", exhausted)
    line = ended(capsys, 2, *QUICK, "--workdir", tmp_path)
    assert all(flag in line for flag in ("--batch-size", "--accum", "--precision bf16"))


def test_no_space_for_a_checkpoint_is_told_and_the_ones_before_are_kept(
    tmp_path, monkeypatch, capsys, uninterrupted
):
    save = ocp.CheckpointManager.save

    def full(manager, step, **kwargs):
        if step > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(manager, step, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", full)
        assert "no space left" in ended(capsys, 2, *TINY, "--workdir", tmp_path)
    assert saved_steps(tmp_path) == [7, 10]
    main(*TINY, "--workdir", tmp_path)
    assert_same_run(tmp_path, uninterrupted("plain"))


def test_a_disk_with_too_little_room_is_told_before_a_checkpoint_is_begun(
    tmp_path, monkeypatch, capsys
):
    nearly_full = shutil.disk_usage(tmp_path)._replace(free=2**17 + 999)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: nearly_full)
    assert "no space left for a checkpoint" in ended(capsys, 2, *TINY, "--workdir", tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_no_space_for_a_line_of_the_log_is_told(tmp_path, monkeypatch, capsys):
    def full(workdir, line):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Workdir, "log", full)
    assert "no space left" in ended(capsys, 2, *QUICK, "--workdir", tmp_path)
