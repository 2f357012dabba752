"""Image generation: a run from digits to sheets of samples, its verbs, and its mistakes."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.image_generation import PRESETS, SCRIPT, Config, build, make_model
from jaxdl.errors import UserError
from jaxdl.interop.safetensors import load_model
from jaxdl.models import UNet
from jaxdl.run.cli import from_json, newest
from jaxdl.run.experiment import Session
from jaxdl.run.generation import check_sampling, image_keys
from jaxdl.run.generation_report import judged
from jaxdl.run.generation_table import MeasureConfig, measure
from jaxdl.run.generation_verbs import InpaintConfig, SampleConfig, inpaint, sample
from jaxdl.run.generator import Sampling, load_generator
from jaxdl.run.images import load
from jaxdl.run.judge import Seen, trained_judge
from jaxdl.run.pictures import GAP
from jaxdl.run.workdir import Workdir
from jaxdl.train.sharding import Placement
from tests.run.generators import Pixels, read_picture
from tests.run.test_hosts import ends_of, free_port

TINY = (
    "--width", "8", "--blocks", "1", "--heads", "2", "--multipliers", "1", "--attention", "True",
    "--epochs", "0.3", "--warmup", "2", "--eval-batch-size", "64",
    "--sampler-steps", "3", "--measured", "100", "--judge-epochs", "1", "--log-every", "3",
    "--mesh", "data=1",
)  # fmt: skip


def main(*arguments):
    SCRIPT.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generation") / "run"
    main(*TINY, "--workdir", folder)
    return folder


def test_a_run_reports_what_the_judge_says_beside_what_it_says_of_real_images(run):
    report = json.loads((run / "report.json").read_text())
    test = report["test"]
    assert set(test) == {
        "loss", "conditional_accuracy", "judge_accuracy", "frechet", "frechet_floor", "novelty",
        "diversity",
    }  # fmt: skip
    assert test["judge_accuracy"] > 0.5  # after one epoch
    assert test["frechet"] > test["frechet_floor"] > 0
    assert report["sampling"] == {"sampler": "dpm", "steps": 3, "guidance": 1.0}
    figures = {path.name for path in (run / "figures").iterdir()}
    assert figures == {
        "inputs.png", "learning_curves.png", "samples.png", "reverse.png", "reverse.gif",
        "neighbours.png",
    }  # fmt: skip
    side = 10 * (64 + GAP) + GAP
    for path in (run / "samples" / f"{report['steps']}.png", run / "figures" / "samples.png"):
        assert read_picture(path).shape == (side, side, 3)
    with Image.open(run / "figures" / "reverse.gif") as film:
        assert film.n_frames == 4  # the noise, and three steps


def test_samples_are_measured_in_every_way_and_as_the_report_measures_them(run, capsys):
    ways = "--sampler", "dpm", "ddim", "--steps", 3, "--guidance", 1, "--count", 100
    main("measure", "--workdir", run, *ways)
    lines = (run / "samples" / "measured.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    told = [(row["sampler"], row["steps"], row["guidance"]) for row in rows]
    assert told == [("dpm", 3, 1), ("ddim", 3, 1)]
    test = json.loads((run / "report.json").read_text())["test"]
    for name in ("conditional_accuracy", "judge_accuracy", "frechet", "frechet_floor"):
        assert rows[0][name] == pytest.approx(test[name], rel=1e-3)
    assert rows[0]["frechet"] != rows[1]["frechet"]
    out = capsys.readouterr().out.splitlines()
    first = " ".join(line.split()[0] for line in out[-4:])
    assert first == "sampler 100 dpm ddim"
    main("measure", "--workdir", run, "--steps", 3, "--guidance", 1, 2, "--count", 100)
    after = (run / "samples" / "measured.jsonl").read_text().splitlines()
    assert after[:2] == lines  # what was there stays
    assert [json.loads(line)["guidance"] for line in after[2:]] == [1, 2]
    assert json.loads(after[2])["frechet"] != json.loads(after[3])["frechet"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--steps", "0"), "--steps must lie in [1, 1000], got 0"),
        (("--count", "0"), "--count must be at least 1, got 0"),
        (("--guidance", "nan"), "--guidance must be finite, got nan"),
        (("--sampler", "euler"), "--sampler"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(run, capsys, options, told):
    with pytest.raises(SystemExit, match="2"):
        main("measure", "--workdir", run, *options)
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_what_is_not_asked_for_is_as_the_run_has_it(run, monkeypatch, capsys):
    generator, about = load_generator(run, UNet)
    assert generator.how == Sampling("dpm", 3, 1.0)  # of TINY
    assert about["sampling"] == generator.how._asdict()
    monkeypatch.setattr(  # an export from before it was kept
        "jaxdl.run.generator.load_model",
        lambda folder: (found := load_model(folder))._replace(
            about={k: v for k, v in found.about.items() if k != "sampling"}
        ),
    )
    assert load_generator(run, UNet)[0].how == Sampling()
    guided = dataclasses.replace(generator, how=Sampling("unipc", 4, 1.5))
    assert SampleConfig(workdir=run).how(guided) == guided.how
    asked = SampleConfig(workdir=run, sampler="ddim", guidance=1.0)
    assert asked.how(guided) == Sampling("ddim", 4, 1.0)
    assert MeasureConfig(workdir=run).ways(guided) == [guided.how]
    several = MeasureConfig(workdir=run, steps=(2, 9), guidance=(0.0, 3.0)).ways(guided)
    assert several == [("unipc", steps, scale) for steps in (2, 9) for scale in (0, 3)]

    monkeypatch.setattr("jaxdl.run.generation_verbs.load_generator", lambda *_: (guided, about))
    sample(SampleConfig(workdir=run, count=1, out=run / "one.png"))
    assert "one.png  1 of each: 0, 1, 2" in (out := capsys.readouterr().out)
    assert out.endswith("by unipc in 4 steps, guidance 1.5\n")


def test_a_run_without_classes_has_no_accuracy_no_label_and_no_guidance(run, monkeypatch, capsys):
    generator, about = load_generator(run, UNet)
    free = dataclasses.replace(generator, model=generator.model.clone(classes=None))
    with pytest.raises(UserError, match="--guidance 2: a run without classes has nothing"):
        check_sampling(free, 1, Sampling(guidance=2.0))
    monkeypatch.setattr("jaxdl.run.generation_verbs.load_generator", lambda *_: (free, about))
    for options in (
        SampleConfig(workdir=run, label="3"),
        InpaintConfig(workdir=run, picture=Path("a.png"), label="3"),
    ):
        verb = sample if isinstance(options, SampleConfig) else inpaint
        with pytest.raises(UserError, match="--label 3: there are no classes in this run"):
            verb(options)
    with pytest.raises(UserError, match="--guidance 3 needs a --label"):
        inpaint(InpaintConfig(workdir=run, picture=Path("a.png"), guidance=3.0))
    seen = Seen(np.eye(4), np.random.default_rng(0).normal(size=(4, 3)))
    labels = np.arange(4)
    assert "conditional_accuracy" not in judged(seen, seen, seen, labels, labelled=False)
    assert judged(seen, seen, seen, labels, labelled=True)["conditional_accuracy"] == 1


def test_without_a_judge_nothing_is_measured(run, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("judge", "checkpoints"))
    with pytest.raises(UserError, match="holds no judge"):
        measure(MeasureConfig(workdir=tmp_path / "run"))


def test_the_judge_is_trained_once(run, tmp_path, monkeypatch):
    judge = run / "judge" / "model.safetensors"
    before = judge.stat().st_mtime_ns
    config = from_json(Config, Workdir(run).config()["config"])
    again = {"epochs": 9, "placement": Placement.over()}
    read = trained_judge(config, load(config), run / "judge", **again)
    assert judge.stat().st_mtime_ns == before
    seen = read.look(np.random.default_rng(0).uniform(size=(300, 8, 8, 1)).astype(np.float32))
    assert seen.features.shape == (300, 512)
    np.testing.assert_allclose(seen.probabilities.sum(1), 1, rtol=1e-5)
    # Another process has an empty folder of its own, and must not be the only one to train.
    monkeypatch.setattr("jaxdl.run.judge.by_first", lambda path: str(run / "judge"))
    monkeypatch.setattr("jaxdl.run.judge.fit", None)
    other = trained_judge(config, load(config), tmp_path, **again)
    jax.tree.map(np.testing.assert_array_equal, other.params, read.params)


@pytest.mark.slow
def test_two_processes_evaluate_a_run_that_has_a_judge(run):
    command = ("-m", "experiments.image_generation", "evaluate", "--workdir", run)
    command += ("--mesh", "data=2", "--coordinator", f"localhost:{free_port()}")
    command += ("--num-processes", 2, "--barrier-seconds", 60, "--process-id")
    ends = ends_of([(*command, i) for i in range(2)])
    assert [end.status for end in ends] == [0, 0], ends
    assert "epochs of real images" not in ends[0].out
    assert "conditional_accuracy" in ends[0].out


def test_evaluate_tells_what_the_report_does_and_fid_where_the_weights_are_given(
    run, tmp_path, monkeypatch, capsys
):
    read = []

    def pixels(path):
        read.append(path)
        return Pixels({})

    monkeypatch.setattr("experiments.image_generation.InceptionFeatures.read", pixels)
    copy = shutil.copytree(run, tmp_path / "run")
    about = json.loads((copy / "config.json").read_text())
    about["config"]["inception"] = "weights.pth"
    (copy / "config.json").write_text(json.dumps(about))
    capsys.readouterr()
    main("evaluate", "--workdir", copy)
    assert read == [Path("weights.pth")]
    told = capsys.readouterr().out
    assert "judge     1 epochs" not in told
    told = told.split("step ")[-1]
    accuracy = Workdir(run).report()["test"]["conditional_accuracy"]
    assert f"test conditional_accuracy {accuracy:.4f}" in told
    fid, floor = (float(re.search(rf"test {n} ([\d.]+)", told)[1]) for n in ("fid", "fid_floor"))
    assert fid > floor > 0


def test_weights_of_inception_are_read_before_anything_and_are_no_part_of_what_a_run_is(
    run, tmp_path, capsys
):
    weights = tmp_path / "weights.pth"
    with pytest.raises(SystemExit) as leaving:
        main(*TINY, "--inception", weights, "--workdir", tmp_path / "new")
    assert leaving.value.code == 2
    assert capsys.readouterr().err == f"error: {weights} is missing, or no file\n"
    assert not (tmp_path / "new").exists()
    main(*TINY, "--inception", weights, "--workdir", run)
    assert f"{run} is complete" in capsys.readouterr().out


def test_the_loss_does_not_depend_on_how_the_test_images_are_batched(run):
    config = from_json(Config, {**Workdir(run).config()["config"], "eval_batch_size": 200})
    session = Session.start(build(config), config)
    loss = session.evaluator()(newest(session, Workdir(run), None))["loss"]
    assert loss == pytest.approx(Workdir(run).report()["test"]["loss"], rel=1e-5)


def test_keys_are_of_images_wherever_they_are():
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 1), np.uint8)
    keys = jax.random.key_data(image_keys(jax.random.key(1), jnp.asarray(images)))
    turned = jax.random.key_data(image_keys(jax.random.key(1), jnp.asarray(images[::-1])))
    np.testing.assert_array_equal(turned[::-1], keys)
    assert len(np.unique(keys, axis=0)) == 6
    other = jax.random.key_data(image_keys(jax.random.key(2), jnp.asarray(images)))
    assert not (other == keys).all(1).any()


def test_the_verb_sample_draws_the_same_sheet_for_a_seed(run, tmp_path, capsys):
    sheets = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / f"{name}.png"
        arguments = ("--label", 7, "--count", 3, "--steps", 2, "--seed", seed, "--out", out)
        main("sample", "--workdir", run, "--sampler", "ddim", *arguments)
        sheets.append(read_picture(out))
    assert sheets[0].shape == (40 + 2 * GAP, 3 * (40 + GAP) + GAP, 3)
    np.testing.assert_array_equal(sheets[0], sheets[1])
    assert (sheets[0] != sheets[2]).any()
    assert "a.png  3 of each: 7" in capsys.readouterr().out
    main("sample", "--workdir", run, "--count", 2, "--steps", 2)
    assert len(read_picture(run / "samples" / "sample.png")) == 10 * (40 + GAP) + GAP


def test_the_verb_inpaint_shows_the_picture_what_was_told_and_completions(run, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    out = tmp_path / "out.png"
    main("inpaint", "--workdir", run, tmp_path / "a.png", "--hide", "left", "--count", 2,
         "--steps", 2, "--label", 4, "--invert", "--out", out)  # fmt: skip
    drawn = read_picture(out)[..., 0]
    cells = [drawn[GAP : GAP + 40 : 5, GAP + i * (40 + GAP) :][:, :40:5] for i in range(4)]
    np.testing.assert_array_equal(cells[0], 255 - picture)
    for cell in cells[1:]:
        np.testing.assert_allclose(cell[:, 4:].astype(int), 255 - picture[:, 4:], atol=1)
    assert (cells[1][:, :4] == 128).all()


def test_a_picture_in_colours_is_mixed_to_grey_where_training_was(run, tmp_path, monkeypatch):
    generator, about = load_generator(run, UNet)
    stored = {**about, "stored_shape": [8, 8, 3]}
    monkeypatch.setattr("jaxdl.run.generation_verbs.load_generator", lambda *_: (generator, stored))
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    out = tmp_path / "out.png"
    inpaint(InpaintConfig(workdir=run, picture=tmp_path / "a.png", count=1, steps=2, out=out))
    drawn = read_picture(out)[GAP : GAP + 40 : 5, GAP : GAP + 40 : 5, 0]
    np.testing.assert_array_equal(drawn, np.asarray(Image.fromarray(colours).convert("L")))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("sample", "--label", "seven"), "--label seven: there are 0, 1, 2"),
        (("sample", "--steps", "0"), "--steps must lie in [1, 1000], got 0"),
        (("sample", "--count", "0"), "--count must be at least 1"),
        (("inpaint", "nowhere.png"), "nowhere.png"),
        (("sample", "--out", "a.xyz"), "--out a.xyz cannot be written"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments, told, run, capsys):
    verb, *rest = arguments
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        main(verb, "--workdir", run, *rest)
    assert leaving.value.code == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert told in error[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mean": 0.1}, "--mean must be 0.5"),
        ({"folder": Path("a")}, "--folder needs --dataset folder beside it, got a"),
        ({"image_size": 9}, "--image-size must be a multiple of 2"),
        ({"attention": (True,)}, "--attention must be as many as --multipliers"),
        ({"sampler_steps": 0}, "--sampler-steps must be above 0"),
        ({"sampler_steps": 1001}, "--sampler-steps must be at most 1000"),
        ({"guidance": float("nan")}, "--guidance must be finite"),
        ({"guidance": 2.0, "conditional": False}, "--guidance must be 1: nothing is withheld"),
        ({"guidance": 2.0, "label_dropout": 0.0}, "--guidance must be 1: nothing is withheld"),
        ({"label_dropout": 1.0}, "--label-dropout must lie in"),
        ({"measured": 0}, "--measured must be above 0"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(changes, told):
    with pytest.raises(UserError, match=re.escape(told)):
        dataclasses.replace(PRESETS["digits"], **changes)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_network_of_every_preset_is_built(preset):
    config = PRESETS[preset]
    x, time = jnp.zeros((2, *config.input_shape)), jnp.zeros(2)
    for conditional in (True, False):
        model = make_model(
            dataclasses.replace(config, conditional=conditional, guidance=1.0), classes=7
        )
        init = lambda model=model: model.init_with_output(jax.random.key(0), x, time, train=False)  # noqa: E731
        assert jax.eval_shape(init)[0].shape == x.shape
        assert model.classes == (7 if conditional else None)
