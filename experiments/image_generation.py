"""Image generation: a U-Net that learns to take noise off images, of a class or of any.

python -m experiments.image_generation                # digits: 99% of them right, in 5 minutes
python -m experiments.image_generation mnist-small    # MNIST, by a network for a CPU
python -m experiments.image_generation mnist          # for a GPU
python -m experiments.image_generation folder --folder PATH
python -m experiments.image_generation sample --workdir RUN --label 7 --sampler ddim --steps 50
python -m experiments.image_generation inpaint --workdir RUN A.png --hide right --label 3
python -m experiments.image_generation measure --workdir RUN --sampler ddim dpm --steps 10 50
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.data import make_pipeline
from jaxdl.models import UNet
from jaxdl.models.apply import initialise
from jaxdl.run.cli import Script
from jaxdl.run.config import operational
from jaxdl.run.experiment import Experiment
from jaxdl.run.generation import GenerationConfig, make_loss
from jaxdl.run.generation_report import (
    TRAINING,
    Real,
    by_class,
    draw_reverse,
    draw_samples,
    report_samples,
    trained_on,
)
from jaxdl.run.generation_table import measure
from jaxdl.run.generation_verbs import inpaint, sample
from jaxdl.run.images import draw_inputs, load
from jaxdl.run.inception import InceptionFeatures
from jaxdl.run.judge import trained_judge
from jaxdl.run.workdir import Workdir
from jaxdl.train import TrainState
from jaxdl.train.sharding import Placement
from jaxdl.types import Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(GenerationConfig):
    """Options of image generation."""

    conditional: bool = True
    """Learn to draw an image of a given class, and of any."""
    label_dropout: float = 0.1
    """Share of labels that are withheld in training, which guidance builds on."""
    measured: int = 2000
    """Samples that are measured in the end, or as many as there are test images."""
    judge_epochs: int = 20
    """Passes over the real images, to train the judge of the generated ones."""
    inception: Path | None = operational(None)
    """Weights of InceptionV3, to report FID too: pt_inception-2015-12-05-6726825d.pth of the
    pytorch-fid project."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        super().__post_init__()
        self._require(0 <= self.label_dropout < 1, "label_dropout", "must lie in [0, 1)")
        self._require_withheld(self.label_dropout if self.conditional else 0)
        for name in ("measured", "judge_epochs"):
            self._require(getattr(self, name) > 0, name, "must be above 0")


DIGITS = Config(
    image_size=8, multipliers=(1, 2), attention=(False, True), epochs=90, eval_every=500,
    learning_rate=2e-3, schedule="cosine", warmup=100, clip_norm=1.0, ema_decay=0.995,
)  # fmt: skip

PRESETS = {
    "digits": DIGITS,
    "mnist": dataclasses.replace(
        DIGITS, dataset="mnist", image_size=28, width=64, multipliers=(1, 2, 2), batch_size=128,
        attention=(False, False, True), epochs=30, eval_every=0, learning_rate=1e-3,
        ema_decay=0.999, judge_epochs=12,
    ),
    "mnist-small": dataclasses.replace(
        DIGITS, dataset="mnist", image_size=28, patch=2, blocks=1, dropout=0.0, batch_size=64,
        epochs=12, eval_every=0, ema_decay=0.999, guidance=1.5, judge_epochs=5,
    ),
    "folder": dataclasses.replace(
        DIGITS, dataset="folder", image_size=64, channels=3, width=64, multipliers=(1, 2, 3, 4),
        attention=(False, False, True, True), flip=True, epochs=300, eval_every=1000,
        learning_rate=5e-4, ema_decay=0.999,
    ),
}  # fmt: skip


def make_model(config: Config, classes: int) -> UNet:
    """Makes the config's network."""
    return UNet(**config.network, classes=classes if config.conditional else None)


def build(config: Config) -> Experiment:
    """Puts the experiment together."""
    # Before the data, and before training: a wrong file costs no run.
    inception = None if config.inception is None else InceptionFeatures.read(config.inception)
    data = load(config)
    model = make_model(config, len(data.classes))
    pipeline = partial(make_pipeline, workers=config.workers)
    given = "label" if config.conditional else None

    def init(key: Key):
        return initialise(model, key, jnp.zeros((1, *config.input_shape)), jnp.zeros(1))

    def preview(workdir: Workdir) -> None:
        draw_inputs(config, data, workdir.figures / "inputs.png")

    # The same noise at every evaluation, so that one can see what becomes of it.
    drawn: dict[str, Any] = {"how": config.sampling, "key": jax.random.key(config.seed)}

    def observe(state: TrainState, workdir: Workdir) -> None:
        trained, path = config.generator(model, state), workdir.samples / f"{int(state.step)}.png"
        draw_samples(trained, by_class(model.classes), path, **drawn)

    def finish(state: TrainState, workdir: Workdir, placement: Placement) -> dict[str, Any]:
        trained, figures = config.generator(model, state), workdir.figures
        judge = trained_judge(
            config, data, workdir.judge, epochs=config.judge_epochs, placement=placement
        )
        draw_samples(trained, by_class(model.classes), figures / "samples.png", **drawn)
        draw_reverse(trained, by_class(model.classes, each=1), figures, **drawn)
        train = Real.of(config, data.train, TRAINING)
        test = Real.of(config, data.test, config.measured)
        return report_samples(
            trained, judge, train, test, originals=trained_on(config, data.train), figures=figures,
            labelled=config.conditional, inception=inception, **drawn,
        )  # fmt: skip

    about = {"classes": data.classes, "stored_shape": data.train[0]["image"].shape}
    return Experiment(
        dataset=data.name,
        model=model,
        about=about | config.about,
        init=init,
        loss=make_loss(config, model, given, withheld=config.label_dropout),
        train=pipeline(data.train, config.batch_size, seed=config.seed),
        test=pipeline(data.test, config.eval_batch_size, seed=None),
        metric=("loss", "min"),
        preview=preview,
        observe=observe,
        finish=finish,
    )


SCRIPT = Script(
    name="image_generation",
    presets=PRESETS,
    build=build,
    verbs={"sample": sample, "inpaint": inpaint, "measure": measure},
)

if __name__ == "__main__":
    SCRIPT.main()
