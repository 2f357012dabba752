"""Text to image: a sentence is read by a transformer, and a U-Net draws what it says.

python -m experiments.text_to_image                   # scenes of digits, in a quarter of an hour
python -m experiments.text_to_image mnist             # for a GPU
python -m experiments.text_to_image folder --folder PATH
python -m experiments.text_to_image sample --workdir RUN --prompt "a red seven left of a blue two"
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxdl.data import SceneDataset, make_pipeline
from jaxdl.models import TextToImage
from jaxdl.models.apply import initialise
from jaxdl.run.cli import Script
from jaxdl.run.experiment import Experiment
from jaxdl.run.generation import make_loss
from jaxdl.run.generation_report import draw_reverse
from jaxdl.run.images import draw_inputs
from jaxdl.run.text_to_image import (
    CaptionConfig,
    draw_guidance,
    draw_prompts,
    first_captions,
    load_captions,
    report_scenes,
    sample,
)
from jaxdl.run.workdir import Workdir
from jaxdl.train import TrainState
from jaxdl.train.rules import TRANSFORMER
from jaxdl.train.sharding import Placement
from jaxdl.types import Key

# All options are those of every experiment on captioned pictures. The pixels of the last level are
# the cells of a scene, where it is settled what lies where.
DIGITS = CaptionConfig(
    image_size=16, image_width=24, patch=2, width=48, multipliers=(1, 2, 2), blocks=1, dropout=0.0,
    attention=(True, True, True), noise="linear", batch_size=32, epochs=1, eval_every=1000,
    learning_rate=2e-3, schedule="cosine", warmup=200, clip_norm=1.0, ema_decay=0.998, guidance=2.0,
)  # fmt: skip

PRESETS = {
    "digits": DIGITS,
    "mnist": dataclasses.replace(
        DIGITS, dataset="mnist", image_size=32, image_width=48, width=96, blocks=2,
        multipliers=(1, 2, 2, 2), attention=(False, True, True, True), text_width=128,
        text_layers=3, batch_size=128, scenes=4_000_000, eval_every=2500, learning_rate=5e-4,
        warmup=1000, ema_decay=0.9995, measured=2000, judge_epochs=12, workers=4,
    ),
    "folder": dataclasses.replace(
        DIGITS, dataset="folder", image_size=64, image_width=None, patch=1, width=64, blocks=2,
        multipliers=(1, 2, 3, 4), attention=(False, False, True, True), noise="cosine",
        text_width=128, text_layers=3, dropout=0.1, epochs=300, learning_rate=5e-4,
        ema_decay=0.999,
    ),
}  # fmt: skip

# What is called as parts of attention are and has no counterpart to be summed in stays whole: the
# U-Net's last convolution, and what words steer pixels by.
RULES = ((r"unet/out/|/words/", PartitionSpec()), *TRANSFORMER)


def make_model(config: CaptionConfig, vocabulary: int) -> TextToImage:
    """Makes the config's network."""
    return TextToImage(
        vocabulary=vocabulary, text_width=config.text_width, text_layers=config.text_layers,
        **config.network,
    )  # fmt: skip


def build(config: CaptionConfig) -> Experiment:
    """Puts the experiment together."""
    data = load_captions(config)
    model = make_model(config, data.tokenizer.size)
    # Scenes are made as they are needed; a folder lives on the device, where it fits.
    train = make_pipeline(
        data.train, config.batch_size, seed=config.seed, workers=config.workers,
        resident=False if isinstance(data, SceneDataset) else None,
    )  # fmt: skip

    def init(key: Key):
        shape = 1, *config.input_shape
        return initialise(model, key, jnp.zeros(shape), jnp.zeros(1), jnp.ones((1, 8), jnp.int32))

    def preview(workdir: Workdir) -> None:
        draw_inputs(config, data, workdir.figures / "inputs.png")

    # The same noise at every evaluation, so that one can see what becomes of it.
    drawn: dict[str, Any] = {"how": config.sampling, "key": jax.random.key(config.seed)}

    def observe(state: TrainState, workdir: Workdir) -> None:
        path = workdir.samples / f"{int(state.step)}.png"
        draw_prompts(config.generator(model, state), data, path, **drawn)

    def finish(state: TrainState, workdir: Workdir, placement: Placement) -> dict[str, Any]:
        trained, figures = config.generator(model, state), workdir.figures
        workdir.model.mkdir(exist_ok=True)
        data.tokenizer.save(workdir.model)
        draw_prompts(trained, data, figures / "samples.png", **drawn)
        draw_guidance(trained, data, figures / "guidance.png", **drawn)
        draw_reverse(trained, first_captions(data, 10), figures, **drawn)
        if not isinstance(data, SceneDataset):
            return {"sampling": config.sampling._asdict()}
        judged = {"folder": workdir.judge, "placement": placement}
        return report_scenes(trained, data, config, **drawn, **judged)

    return Experiment(
        dataset=data.name,
        model=model,
        about={**config.about, "length": data.train.length},
        init=init,
        loss=make_loss(config, model, "tokens", withheld=config.text_dropout),
        train=train,
        test=make_pipeline(data.test, config.eval_batch_size, seed=None, workers=config.workers),
        metric=("loss", "min"),
        rules=RULES,
        preview=preview,
        observe=observe,
        finish=finish,
    )


SCRIPT = Script(name="text_to_image", presets=PRESETS, build=build, verbs={"sample": sample})

if __name__ == "__main__":
    SCRIPT.main()
