"""Image generation: a U-Net that learns to take noise off images, of a class or of any.

python -m experiments.image_generation                # digits: 99% of them right, in 5 minutes
python -m experiments.image_generation mnist          # for a GPU
python -m experiments.image_generation folder --folder PATH
python -m experiments.image_generation sample --workdir RUN --label 7 --sampler ddim --steps 50
python -m experiments.image_generation inpaint --workdir RUN A.png --hide right --label 3
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.data import make_pipeline
from jaxdl.diffusion import denoising_loss
from jaxdl.keys import derive
from jaxdl.metrics import Mean
from jaxdl.models import UNet
from jaxdl.models.apply import apply, initialise
from jaxdl.run.cli import Script
from jaxdl.run.experiment import Experiment
from jaxdl.run.generation import GenerationConfig, image_keys, inpaint, sample
from jaxdl.run.generation_report import Real, draw_reverse, draw_samples, report_samples
from jaxdl.run.generator import NOISES, PREDICTIONS, Generator
from jaxdl.run.hosts import gathered
from jaxdl.run.images import draw_inputs, load, prepare
from jaxdl.run.judge import trained_judge
from jaxdl.run.workdir import Workdir
from jaxdl.train import Aux, Loss, TrainState
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

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        super().__post_init__()
        self._require(0 <= self.label_dropout < 1, "label_dropout", "must lie in [0, 1)")
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
    "folder": dataclasses.replace(
        DIGITS, dataset="folder", image_size=64, channels=3, width=64, multipliers=(1, 2, 3, 4),
        attention=(False, False, True, True), flip=True, epochs=300, eval_every=1000,
        learning_rate=5e-4, ema_decay=0.999,
    ),
}  # fmt: skip


def make_model(config: Config, classes: int) -> UNet:
    """Makes the config's network."""
    return UNet(
        config.channels, width=config.width, multipliers=config.multipliers, blocks=config.blocks,
        attention=config.attention, heads=config.heads, dropout=config.dropout, dtype=config.dtype,
        classes=classes if config.conditional else None,
    )  # fmt: skip


def make_loss(config: Config, model: UNet) -> Loss:
    """Makes the squared error of what the network predicts of noisy images, a number an image."""

    def loss(params, model_state, batch, key, *, train):
        x0 = prepare(config, batch["image"], derive(key, "augment") if train else None)
        labels, none = batch["label"] if config.conditional else None, model.classes or 0
        if train and labels is not None:
            drop = jax.random.bernoulli(derive(key, "labels"), config.label_dropout, labels.shape)
            labels = jnp.where(drop, none, labels)
        rngs = {"dropout": derive(key, "dropout")} if train else None

        def network(x, time):
            return apply(model, params, model_state, x, time, labels, train=train, rngs=rngs)[0]

        errors = denoising_loss(
            network, x0, image_keys(derive(key, "noise"), batch["image"]),
            schedule=NOISES[config.noise], prediction=PREDICTIONS[config.prediction],
        )  # fmt: skip
        mean = Mean.of(errors.mean((1, 2, 3)), batch.get("mask"))
        return mean, Aux({"loss": mean}, model_state)

    return loss


def build(config: Config) -> Experiment:
    """Puts the experiment together."""
    data = load(config)
    model = make_model(config, len(data.classes))
    pipeline = partial(make_pipeline, workers=config.workers)

    def init(key: Key):
        return initialise(model, key, jnp.zeros((1, *config.input_shape)), jnp.zeros(1))

    def generator(state: TrainState) -> Generator:
        weights = gathered(state.weights)
        return Generator(model, weights, config.input_shape, config.noise, config.prediction)

    def preview(workdir: Workdir) -> None:
        draw_inputs(config, data, workdir.figures / "inputs.png")

    # The same noise at every evaluation, so that one can see what becomes of it.
    drawn: dict[str, Any] = {"how": config.sampling, "key": jax.random.key(config.seed)}

    def observe(state: TrainState, workdir: Workdir) -> None:
        draw_samples(generator(state), workdir.samples / f"{int(state.step)}.png", **drawn)

    def finish(state: TrainState, workdir: Workdir, placement: Placement) -> dict[str, Any]:
        trained, figures = generator(state), workdir.figures
        judge = trained_judge(
            config, data, workdir.path / "judge", epochs=config.judge_epochs, placement=placement
        )
        draw_samples(trained, figures / "samples.png", **drawn)
        draw_reverse(trained, figures, **drawn)
        train = Real.of(config, data.train, 20_000)
        test = Real.of(config, data.test, config.measured)
        return report_samples(trained, judge, train, test, figures=figures, **drawn)

    about = {"classes": data.classes, "stored_shape": data.train[0]["image"].shape}
    about |= {"noise": config.noise, "prediction": config.prediction}
    return Experiment(
        dataset=data.name,
        model=model,
        about={**about, "image_shape": config.input_shape},
        init=init,
        loss=make_loss(config, model),
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
    verbs={"sample": sample, "inpaint": inpaint},
)

if __name__ == "__main__":
    SCRIPT.main()
