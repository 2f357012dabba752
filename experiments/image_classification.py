"""Image classification: the reference CNN, a residual CNN, or an MLP.

python -m experiments.image_classification            # digits: 1 minute, 99% of held-out digits
python -m experiments.image_classification mnist      # the reference recipe: 99.2% in 30 minutes
python -m experiments.image_classification evaluate --workdir runs/image_classification-digits
python -m experiments.image_classification predict --workdir runs/image_classification-digits A.png
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.data import make_pipeline
from jaxdl.keys import derive
from jaxdl.layers import Activation
from jaxdl.losses import softmax_cross_entropy
from jaxdl.metrics import Mean, correct
from jaxdl.models import MLP, ReferenceCNN, ResidualCNN
from jaxdl.models.apply import apply, initialise
from jaxdl.models.cnn import Norm
from jaxdl.run.classification import PREPARED, predict, predict_all, report_predictions
from jaxdl.run.cli import Script
from jaxdl.run.experiment import Experiment
from jaxdl.run.images import ImageConfig, draw_inputs, load, prepare
from jaxdl.run.workdir import Workdir
from jaxdl.train import Aux, Loss, TrainState, over_batches
from jaxdl.train.sharding import Placement
from jaxdl.types import Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ImageConfig):
    """Options of image classification."""

    model: Literal["reference", "residual", "mlp"] = "reference"
    """The network: the reference CNN, a residual CNN, or an MLP."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of each convolution or stage; units of each hidden layer of the MLP."""
    activation: Activation = "relu"
    """Activation of the MLP."""
    norm: Norm = "group"
    """Normalisation of the residual CNN: of each example by groups of channels, or of the batch."""
    dropout: float = 0.5
    """Probability of dropping a unit before each dense layer."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        super().__post_init__()
        self._require(min(self.widths, default=0) > 0, "widths", "must be one or more, above 0")
        for name in ("dropout", "label_smoothing"):
            self._require(0 <= getattr(self, name) < 1, name, "must lie in [0, 1)")
        if self.model != "mlp":
            self._require_multiple(2 ** (len(self.widths) - 1))


RECIPE = Config(rotation=10, brightness=0.2, contrast=0.2, weight_decay=1e-4, epochs=5)

PRESETS = {
    "digits": dataclasses.replace(
        RECIPE, image_size=24, epochs=20, translate=0.08, scale=0.1, shear=8, schedule="cosine",
        warmup=20, ema_decay=0.98,
    ),
    "mnist": dataclasses.replace(RECIPE, dataset="mnist"),
    "mnist-best": Config(
        dataset="mnist", model="residual", widths=(24, 48, 96), dropout=0.1, image_size=28,
        channels=1, rotation=12, translate=0.1, scale=0.1, shear=8, epochs=12, optimizer="adamw",
        weight_decay=0.02, learning_rate=3e-3, schedule="cosine", warmup=500, ema_decay=0.999,
        label_smoothing=0.05,
    ),
    "digits-mlp": Config(
        model="mlp", widths=(256, 128), image_size=8, channels=1, dropout=0.2, rotation=10,
        translate=0.1, epochs=60, schedule="cosine", optimizer="adamw", weight_decay=0.01,
    ),
    "folder": Config(
        dataset="folder", model="residual", image_size=64, mean=0.5, std=0.25, rotation=10,
        brightness=0.2, contrast=0.2, flip=True, crop_padding=4, epochs=30, optimizer="adamw",
        weight_decay=0.05, schedule="cosine", warmup=100, ema_decay=0.999, dropout=0.2,
    ),
}  # fmt: skip


def make_model(config: Config, classes: int) -> nn.Module:
    """Makes the config's network."""
    shared = {"classes": classes, "widths": config.widths, "dropout": config.dropout}
    if config.model == "mlp":
        return MLP(activation=config.activation, dtype=config.dtype, **shared)
    if config.model == "residual":
        norm = {"norm": config.norm, "axis_name": config.axis_name}
        return ResidualCNN(dtype=config.dtype, **norm, **shared)
    return ReferenceCNN(dtype=config.dtype, **shared)


def make_loss(config: Config, model: nn.Module) -> Loss:
    """Makes the cross-entropy of the network on augmented images."""

    def loss(params, model_state, batch, key, *, train):
        x = prepare(config, batch["image"], derive(key, "augment") if train else None)
        rngs = {"dropout": derive(key, "dropout")} if train else None
        logits, model_state = apply(model, params, model_state, x, train=train, rngs=rngs)
        smoothing = config.label_smoothing if train else 0.0
        losses = softmax_cross_entropy(logits, batch["label"], label_smoothing=smoothing)
        mean = Mean.of(losses, batch.get("mask"))
        accuracy = Mean.of(correct(logits, batch["label"]), batch.get("mask"))
        return mean, Aux({"loss": mean, "accuracy": accuracy}, model_state)

    return loss


def build(config: Config) -> Experiment:
    """Puts the experiment together."""
    data = load(config)
    model = make_model(config, len(data.classes))
    test = make_pipeline(data.test, config.eval_batch_size, seed=None, workers=config.workers)

    def init(key: Key):
        return initialise(model, key, jnp.zeros((1, *config.input_shape)))

    def classify(state: TrainState, batch):
        x = prepare(config, batch["image"], None)
        logits, _ = apply(model, state.weights, state.model_state, x)
        return batch["label"], jax.nn.softmax(logits), batch["mask"]

    def preview(workdir: Workdir) -> None:
        draw_inputs(config, data, workdir.figures / "inputs.png")

    def finish(state: TrainState, workdir: Workdir, placement: Placement) -> dict[str, Any]:
        predictions = predict_all(over_batches(classify, test, placement=placement), state)
        return report_predictions(predictions, data.test, data.classes, workdir.figures)

    about = {"classes": data.classes, "stored_shape": data.train[0]["image"].shape}
    about |= {name: getattr(config, name) for name in PREPARED}
    return Experiment(
        dataset=data.name,
        model=model,
        about={**about, "input_shape": config.input_shape},
        init=init,
        loss=make_loss(config, model),
        train=make_pipeline(
            data.train, config.batch_size, seed=config.seed, workers=config.workers
        ),
        test=test,
        metric=("accuracy", "max"),
        preview=preview,
        finish=finish,
    )


SCRIPT = Script(
    name="image_classification", presets=PRESETS, build=build, verbs={"predict": predict}
)

if __name__ == "__main__":
    SCRIPT.main()
