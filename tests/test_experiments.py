"""The real presets of every experiment, shrunk to two steps through the command line."""

import functools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import image_generation, language_modeling, text_to_image, translation
from experiments.image_classification import PRESETS, SCRIPT, make_model
from jaxdl.data.pairs import dates
from jaxdl.data.text_pipeline import Windows
from jaxdl.run.experiment import Session

MNIST = os.environ.get("JAXDL_TEST_TFDS")
# Two steps of eight examples: no more is shrunk than the number of steps, and what they cost.
SHRUNK = ("--batch-size", "8", "--warmup", "1", "--log-every", "1")


def two_steps(preset, examples, folder, *arguments):
    epochs = str(2 * 8 / examples)
    SCRIPT.main([preset, *SHRUNK, "--epochs", epochs, "--workdir", str(folder), *arguments])
    report = json.loads((folder / "report.json").read_text())
    assert report["steps"] == 2
    counts = np.array(report["confusion_matrix"])
    assert report["test"]["accuracy"] == pytest.approx(np.trace(counts) / counts.sum())
    assert np.isfinite(report["test"]["loss"])
    assert len(list((folder / "figures").glob("*.png"))) == 4
    return report


@pytest.mark.parametrize("preset", PRESETS)
def test_the_network_of_every_preset_is_built(preset):
    config = PRESETS[preset]
    model = make_model(config, classes=7)
    assert model.classes == 7
    assert model.widths == config.widths


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["digits", "digits-mlp"])
def test_the_presets_of_the_embedded_digits_train(preset, tmp_path):
    report = two_steps(preset, 1438, tmp_path)
    assert report["dataset"] == "digits"
    if preset == "digits":  # the reference CNN, its first dense layer after two halvings
        convolutions, classes = 896 + 18_496 + 73_856, 512 * 10 + 10
        flat = (PRESETS["digits"].image_size // 4) ** 2 * 128
        assert report["parameters"] == convolutions + flat * 512 + 512 + classes


@pytest.fixture
def pictures(tmp_path):
    """A folder of coloured pictures of several sizes, of two classes: 20 to train on, 6 to test."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 256, (20 + i, 30 - i, 3), np.uint8)
                Image.fromarray(image).save(folder / f"{i}.png")
    return tmp_path / "pictures"


@pytest.mark.slow
def test_the_preset_of_a_folder_trains_on_pictures_of_several_sizes(tmp_path, pictures):
    small = ("--widths", "8", "--image-size", "16", "--eval-batch-size", "8")
    report = two_steps("folder", 20, tmp_path / "run", "--folder", str(pictures), *small)
    assert np.sum(report["confusion_matrix"]) == 6


@pytest.mark.slow
@pytest.mark.parametrize("conditional", [True, False])
def test_coloured_pictures_are_generated_of_a_class_and_of_any(tmp_path, pictures, conditional):
    folder = str(tmp_path / "run")
    few = ("--sampler-steps", "2", "--judge-epochs", "1", "--eval-batch-size", "8")
    small = ("--width", "8", "--blocks", "1", "--image-size", "16", "--epochs", "0.8")
    levels = ("--multipliers", "1", "2", "--attention", "False", "True")  # which compile in time
    told = () if conditional else ("--no-conditional",)
    run = ("folder", "--folder", str(pictures), "--workdir", folder)
    image_generation.SCRIPT.main([*run, *SHRUNK, *few, *small, *levels, *told])
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["steps"] == 2
    assert np.isfinite(list(report["test"].values())).all()
    assert ("conditional_accuracy" in report["test"]) == conditional
    out = tmp_path / "sheet.png"
    where = ("--workdir", folder, "--count", "2", "--out", str(out))
    told = ("--label", "dog") if conditional else ()
    picture = str(pictures / "test" / "dog" / "0.png")
    for verb in (["sample", *told], ["inpaint", picture, "--steps", "2", *told]):
        out.unlink(missing_ok=True)
        image_generation.SCRIPT.main([*verb, *where])
        assert out.is_file()


@pytest.mark.skipif(not MNIST, reason="JAXDL_TEST_TFDS names no folder with mnist prepared")
def test_the_preset_of_mnist_trains(tmp_path):
    narrow = ("--widths", "4", "5", "6")  # it is evaluated on 10,000 images
    report = two_steps("mnist", 60_000, tmp_path, "--data-dir", MNIST, *narrow)
    assert report["dataset"] == "mnist"
    assert np.sum(report["confusion_matrix"]) == 10_000


@pytest.mark.parametrize("preset", language_modeling.PRESETS)
def test_the_network_of_every_language_preset_is_built(preset):
    config = language_modeling.PRESETS[preset]
    model = language_modeling.make_model(config, vocabulary=70)
    tokens = jnp.zeros((2, 9), jnp.int32)
    init = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), tokens, train=False))
    (logits, carry), _ = init
    assert logits.shape == (2, 9, 70)
    assert carry is None or len(carry) == config.layers


@pytest.mark.parametrize(
    ("preset", "steps"),
    [("shakespeare-gpt-cpu", 2000), ("shakespeare-gpt2-cpu", 2000), ("shakespeare-gpt", 5000)],
)
def test_the_presets_after_nanogpt_take_as_many_steps(preset, steps):
    config = language_modeling.PRESETS[preset]
    tokens = np.zeros(int(0.9 * 1_115_394), np.uint8)  # Tiny Shakespeare's, to train on
    train = Windows(tokens, config.batch_size, length=config.length, seed=0)
    assert Session(SimpleNamespace(train=train), config, None).steps == steps


@pytest.mark.parametrize("preset", translation.PRESETS)
def test_the_network_of_every_translation_preset_is_built(preset):
    config = translation.PRESETS[preset]
    model = translation.make_model(config, vocabulary=70)
    source, tokens = jnp.ones((2, 7), jnp.int32), jnp.ones((2, 9), jnp.int32)
    init = lambda: model.init_with_output(jax.random.key(0), source, tokens, train=False)  # noqa: E731
    logits, variables = jax.eval_shape(init)
    assert logits.shape == (2, 9, 70)
    for side in "encoder", "decoder":
        blocks = [name for name in variables["params"][side] if name.startswith("blocks_")]
        assert len(blocks) == config.layers


@pytest.mark.slow
def test_dates_are_translated_by_the_last_weights_and_by_their_mean(tmp_path, monkeypatch, capsys):
    few = functools.partial(dates, train=4000, held_out=40)
    monkeypatch.setattr("jaxdl.run.translation.dates", few)
    folder, steps = str(tmp_path), ("--eval-every", "1", "--log-every", "1", "--warmup", "1")
    translation.SCRIPT.main([*steps, "--epochs", "0.06", "--workdir", folder])
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["dataset"], report["steps"]) == ("dates", 2)
    assert set(report["test"]) == {"loss", "accuracy", "bleu", "exact_match"}
    assert report["test"]["loss"] < np.log(translation.DATES.vocabulary)
    translation.SCRIPT.main(["average", "--workdir", folder, "--last", "2"])
    section = json.loads((tmp_path / "report.json").read_text())["average"]
    assert section["steps"] == [1, 2]
    assert section["test"].keys() == report["test"].keys()
    capsys.readouterr()
    translation.SCRIPT.main(["translate", "--workdir", folder, "--beam", "2", "jeudi 4 mars 2021"])
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.slow
def test_sums_and_days_are_asked_for(tmp_path):
    language_modeling.SCRIPT.main(
        ["questions", "--epochs", "0.01", "--warmup", "1", "--workdir", str(tmp_path)]
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dataset"] == "questions"
    assert set(report["test"]) == {"loss", "accuracy", "exact_match"}
    assert (tmp_path / "figures" / "attention.png").exists()


@pytest.mark.slow
def test_the_source_of_the_standard_library_is_modelled(tmp_path):
    language_modeling.SCRIPT.main(
        ["--epochs", "0.01", "--width", "24", "--warmup", "1", "--workdir", str(tmp_path)]
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dataset"].startswith("stdlib-3.")
    assert 0 < report["test"]["bits_per_char"] < 8
    assert 1.5 < report["baselines"]["order_4"] < 2.5
    assert (tmp_path / "samples" / f"{report['steps']}.txt").read_text().startswith("def ")


def prompted(folder, *arguments):
    """Trains text to image for two steps, and draws what it is told."""
    text_to_image.SCRIPT.main([*arguments, *SHRUNK, "--sampler-steps", "2", "--workdir", folder])
    report = json.loads((Path(folder) / "report.json").read_text())
    assert report["steps"] == 2
    assert np.isfinite(report["test"]["loss"])
    out = str(Path(folder) / "sheet.png")
    text_to_image.SCRIPT.main(
        ["sample", "--workdir", folder, "--prompt", "a red two", "--steps", "2", "--out", out]
    )
    assert Path(out).is_file()
    return report


@pytest.mark.slow
def test_scenes_of_the_embedded_digits_are_drawn(tmp_path):
    few = ("--scenes", "16", "--measured", "8", "--judge-epochs", "1")
    report = prompted(str(tmp_path), "digits", *few)
    assert report["dataset"] == "scenes of digits"
    assert report["test"]["real_position_accuracy"] == 1


@pytest.mark.slow
def test_captioned_pictures_of_ones_own_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), np.uint8)).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"Noise, number {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    small = ("--width", "8", "--image-size", "16", "--epochs", "0.8", "--eval-batch-size", "8")
    where = str(tmp_path / "run")
    report = prompted(where, "folder", "--folder", str(folder), *small)
    assert report["dataset"] == f"folder:{folder}"
    assert set(report["test"]) == {"loss"}
