"""Text to image: a run from captions to sheets of samples, its prompts, and its mistakes."""

import dataclasses
import json
import re
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.text_to_image import PRESETS, SCRIPT, build, make_model
from jaxdl.data import digit_scenes, digits
from jaxdl.errors import UserError
from jaxdl.interop.safetensors import load_model, save_model
from jaxdl.models import TextToImage, UNet
from jaxdl.run.generation import make_loss
from jaxdl.run.generator import Sampling, load_generator
from jaxdl.run.log import Log
from jaxdl.run.pictures import GAP
from jaxdl.run.text_to_image import read_prompts
from tests.parameters import random_params
from tests.run.generators import read_picture

TINY = (
    "--width", "8", "--multipliers", "1", "--attention", "True", "--heads", "2", "--patch", "4",
    "--text-width", "8", "--text-layers", "1", "--scenes", "200", "--warmup", "2",
    "--sampler-steps", "2", "--measured", "24", "--judge-epochs", "1", "--log-every", "2",
    "--mesh", "data=1",
)  # fmt: skip
PROMPT = "a red seven left of a blue two"


def main(*arguments):
    SCRIPT.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text_to_image") / "run"
    main(*TINY, "--workdir", folder)
    return folder


@pytest.fixture(scope="module")
def data():
    return digit_scenes(digits(), side=8, count=16, test=1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, data):
    """What a run exports, of a network that was never trained."""
    folder = tmp_path_factory.mktemp("exported")
    config = dataclasses.replace(
        PRESETS["digits"], width=8, multipliers=(1,), attention=(True,), heads=2, patch=4,
        text_width=8, text_layers=1,
    )  # fmt: skip
    model = make_model(config, data.tokenizer.size)
    inputs = jnp.zeros((1, *config.input_shape)), jnp.zeros(1), jnp.ones((1, 8), jnp.int32)
    about = {**config.about, "length": data.train.length}
    save_model(folder / "model", model, random_params(model, *inputs), about=about)
    data.tokenizer.save(folder / "model")
    return folder


@pytest.mark.slow
def test_a_run_reports_unseen_and_seen_and_what_real_pictures_get(run):
    report = json.loads((run / "report.json").read_text())
    assert report["dataset"] == "scenes of digits"
    test = report["test"]
    parts = [f"{part}_accuracy" for part in ("digit", "color", "position", "scene")]
    assert set(test) == {
        "loss", "judge_accuracy", *parts, *(f"seen_{p}" for p in parts),
        *(f"real_{p}" for p in parts),
    }  # fmt: skip
    assert test["real_color_accuracy"] == test["real_position_accuracy"] == 1
    assert test["judge_accuracy"] > 0.5  # after one epoch
    assert test["real_digit_accuracy"] == pytest.approx(test["judge_accuracy"], abs=0.15)
    assert set(report["unseen_by_count"]) <= {"1", "2", "3"}
    assert report["sampling"] == {"sampler": "dpm", "steps": 2, "guidance": 2.0}
    figures = {path.name for path in (run / "figures").iterdir()}
    assert figures == {
        "inputs.png", "learning_curves.png", "samples.png", "guidance.png", "reverse.png",
        "reverse.gif",
    }  # fmt: skip
    assert (run / "samples" / f"{report['steps']}.png").is_file()


@pytest.mark.slow
def test_evaluate_finds_the_same_numbers(run, capsys):
    main("evaluate", "--workdir", run)
    told = capsys.readouterr().out
    test = json.loads((run / "report.json").read_text())["test"]
    assert f"test digit_accuracy {test['digit_accuracy']:.4f}" in told
    assert f"test real_digit_accuracy {test['real_digit_accuracy']:.4f}" in told


def test_the_verb_sample_draws_a_row_a_prompt_the_same_for_a_seed(exported, tmp_path, capsys):
    sheets = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / f"{name}.png"
        main("sample", "--workdir", exported, "--prompt", PROMPT, "", "--count", 3, "--steps", 2,
             "--sampler", "ddim", "--seed", seed, "--out", out)  # fmt: skip
        sheets.append(read_picture(out))
    assert sheets[0].shape == (2 * (64 + GAP) + GAP, 3 * (96 + GAP) + GAP, 3)
    np.testing.assert_array_equal(sheets[0], sheets[1])
    assert (sheets[0] != sheets[2]).any()
    assert f"a.png  3 of each: {PROMPT}; (no text)" in capsys.readouterr().out


@pytest.fixture(scope="module")
def generator(exported):
    return load_generator(exported, TextToImage)[0]


def test_guidance_of_0_forgets_the_prompt_and_of_1_is_none(generator, data):
    texts = (PROMPT, "a green four"), ("a cyan one", "")
    tokens, others = (read_prompts(data.tokenizer, two, 16) for two in texts)
    how = Sampling("ddpm", 3)
    draw = lambda given, guidance: generator.sample(  # noqa: E731
        given, jax.random.key(0), how._replace(guidance=guidance)
    )
    np.testing.assert_allclose(draw(tokens, 0), draw(others, 0), atol=1e-4)
    np.testing.assert_allclose(draw(tokens, 1), draw(tokens, 1 + 1e-6), atol=1e-3)
    assert np.abs(draw(tokens, 1) - draw(others, 1)).max() > 1e-2
    assert np.abs(draw(tokens, 1) - draw(tokens, 3)).max() > 1e-2
    alone = generator.sample(others[1:], jax.random.key(0), how._replace(guidance=5.0))
    free = generator.sample(others[1:], jax.random.key(0), how)
    np.testing.assert_allclose(alone, free, atol=1e-3)  # there is no text to guide by


class Listener(TextToImage):
    """Paints by the sum of the tokens; it has no parameters."""

    def __call__(self, x, time, tokens, *, train):
        return x * (1 + 0.1 * tokens.sum(1).astype(x.dtype)[:, None, None, None])


def test_texts_are_withheld_in_training_alone(data):
    config = dataclasses.replace(PRESETS["digits"], dropout=0.0)
    rows = [data.train[i] for i in range(16)]
    batch = {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]}
    mute = {**batch, "tokens": jnp.zeros_like(batch["tokens"])}
    model = Listener(channels=3, vocabulary=data.tokenizer.size)

    @partial(jax.jit, static_argnames=("share", "train"))
    def mean(batch, share, *, train):
        loss = make_loss(config, model, "tokens", withheld=share)
        return loss({}, {}, batch, jax.random.key(0), train=train)[0]

    def errors(batch, share, train):
        return float(mean(batch, share, train=train).compute())

    told, untold = errors(batch, 0.0, True), errors(mute, 0.0, True)
    assert abs(told - untold) > 1e-5 * told
    assert errors(batch, 0.99999, True) == pytest.approx(untold, rel=1e-5)
    assert errors(batch, 0.99999, False) == pytest.approx(told, rel=1e-5)
    half = errors(batch, 0.5, True)
    assert abs(half - told) > 1e-6 * told
    assert abs(half - untold) > 1e-6 * told


def test_an_unknown_word_is_told_with_the_nearest(data):
    tokenizer = data.tokenizer
    with pytest.raises(UserError, match=r"unknown word, 'sevn': did you mean seven\?"):
        read_prompts(tokenizer, [PROMPT, "a red sevn"], 16)
    with pytest.raises(UserError, match=r"unknown word, 'xx'; there are .*magenta"):
        read_prompts(tokenizer, ["xx"], 16)
    assert not read_prompts(tokenizer, [""], 16).any()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--prompt", "a red sevn"), "did you mean seven?"),
        (("--prompt", "a red two", "--steps", "0"), "--steps must lie in [1, 1000], got 0"),
        (("--prompt", "a red two", "--count", "0"), "--count must be at least 1, got 0"),
        (("--prompt", "a red two", "--sampler", "euler"), "euler"),
        (("--prompt", "a red two", "--out", "a.xyz"), "--out a.xyz cannot be written"),
        ((), "--prompt"),
    ],
)
def test_mistakes_in_a_prompt_are_told_in_one_line(exported, capsys, arguments, told):
    with pytest.raises(SystemExit, match="2"):
        main("sample", "--workdir", exported, *arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_a_run_of_another_kind_is_refused(exported):
    with pytest.raises(UserError, match="holds no generator of images of this kind"):
        load_generator(exported, UNet)


def test_parameters_of_another_network_are_told(exported, tmp_path):
    model, params, _, about = load_model(exported / "model")
    unet = {name: value for name, value in params["unet"].items() if name != "stem"}
    save_model(tmp_path / "model", model, {**params, "unet": unet}, about=about)
    with pytest.raises(
        UserError, match=r"unet.stem.\w+ is absent there, and \(.*\) in TextToImage"
    ):
        load_generator(tmp_path, TextToImage)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_width": 32}, "--image-width and --image-size must be of 2 x 3 square cells"),
        ({"image_size": 18, "image_width": 27}, "--image-size must be a multiple of 8"),
        ({"channels": 1}, "--channels must be 3: scenes have colours"),
        ({"text_width": 12}, "--text-width must be a multiple of 2 x --heads, 8"),
        ({"text_dropout": 1.0}, "--text-dropout must lie in"),
        ({"scenes": 0}, "--scenes must be above 0"),
        ({"vocabulary": 200}, "--vocabulary must be above 257"),
        ({"patch": 0}, "--patch must be above 0"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(changes, told):
    with pytest.raises(UserError, match=re.escape(told)):
        dataclasses.replace(PRESETS["digits"], **changes)


def test_a_folder_has_to_be_given():
    with pytest.raises(UserError, match="--dataset folder needs --folder PATH"):
        build(PRESETS["folder"])


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_bit_for_bit(run, tmp_path, monkeypatch):
    interval = Log.interval

    def logged(log, at, stepping):
        interval(log, at, stepping)
        if at == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "interval", logged)
        with pytest.raises(SystemExit, match="143"):
            main(*TINY, "--workdir", tmp_path)
    assert not (tmp_path / "report.json").exists()
    main(*TINY, "--workdir", tmp_path)
    weights = "model/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (run / weights).read_bytes()
    reports = [json.loads((path / "report.json").read_text()) for path in (tmp_path, run)]
    assert reports[0]["test"] == reports[1]["test"]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=8", "data=2,tensor=2"])
def test_a_run_is_the_same_on_any_mesh(run, tmp_path, mesh):
    main(*TINY, "--workdir", tmp_path, "--mesh", mesh)
    reports = [json.loads((path / "report.json").read_text()) for path in (tmp_path, run)]
    assert reports[0]["test"]["loss"] == pytest.approx(reports[1]["test"]["loss"], rel=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_network_of_every_preset_is_built(preset):
    config = PRESETS[preset]
    model = make_model(config, vocabulary=33)
    inputs = jnp.zeros((2, *config.input_shape)), jnp.zeros(2), jnp.ones((2, 8), jnp.int32)
    init = lambda: model.init_with_output(jax.random.key(0), *inputs, train=False)  # noqa: E731
    assert jax.eval_shape(init)[0].shape == inputs[0].shape
