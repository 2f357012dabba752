"""Image classification: the reference CNN, a residual CNN, or an MLP.

python -m experiments.image_classification            # digits: 1 minute, 99% of held-out digits
python -m experiments.image_classification mnist      # the reference recipe: 99.2% in 30 minutes
python -m experiments.image_classification evaluate --workdir runs/image_classification-digits
python -m experiments.image_classification predict --workdir runs/image_classification-digits A.png
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxdl.backend import CompilationCache
from jaxdl.data import ImageDataset, decode_image, digits, image_folder, make_pipeline, tfds_images
from jaxdl.data import images as augment
from jaxdl.errors import UserError
from jaxdl.interop.safetensors import load_model
from jaxdl.keys import derive
from jaxdl.layers import Activation
from jaxdl.losses import softmax_cross_entropy
from jaxdl.metrics import Mean, correct
from jaxdl.models import MLP, ReferenceCNN, ResidualCNN
from jaxdl.run.classification import predict_all, report_predictions
from jaxdl.run.cli import Script, VerbConfig
from jaxdl.run.config import RunConfig, operational
from jaxdl.run.experiment import Experiment
from jaxdl.run.progress import say
from jaxdl.run.report import draw_images
from jaxdl.run.workdir import Workdir
from jaxdl.train import Aux, Loss, TrainState, over_batches
from jaxdl.train.sharding import Placement
from jaxdl.types import Array, Key, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Options of image classification; the augmentations apply to training alone."""

    dataset: str = "digits"
    """digits (embedded), folder, or the name of a TFDS dataset, e.g. mnist."""
    folder: Path | None = None
    """For the dataset "folder": PATH/train/CLASS/*.png and PATH/test/CLASS/*.png."""
    data_dir: Path | None = operational(None)
    """Where TFDS keeps prepared datasets [default: ~/tensorflow_datasets]."""
    manual_dir: Path | None = operational(None)
    """Pre-downloaded files for TFDS, which checks them against its own checksums."""
    workers: int = operational(0)
    """Processes that read a dataset too large for memory."""

    model: Literal["reference", "residual", "mlp"] = "reference"
    """The network: the reference CNN, a residual CNN, or an MLP."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of each convolution or stage; units of each hidden layer of the MLP."""
    activation: Activation = "relu"
    """Activation of the MLP."""
    dropout: float = 0.5
    """Probability of dropping a unit before each dense layer."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""

    image_size: int = 48
    """Height and width that images are resized to."""
    channels: Literal[1, 3] = 3
    """Grey is repeated for 3; colours are mixed to grey for 1."""
    mean: float = 0.1307
    """Subtracted from images in [0, 1]."""
    std: float = 0.3081
    """Divided by, after that."""
    rotation: float = 0.0
    """Rotate by up to this many degrees."""
    translate: float = 0.0
    """Shift by up to this share of the side."""
    scale: float = 0.0
    """Zoom by up to this share."""
    shear: float = 0.0
    """Shear by up to this many degrees."""
    brightness: float = 0.0
    """Change the brightness by up to this share."""
    contrast: float = 0.0
    """Change the contrast by up to this share."""
    flip: bool = False
    """Mirror half of the images."""
    crop_padding: int = 0
    """Pad by this many pixels and crop at random."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        super().__post_init__()
        self._require(min(self.widths, default=0) > 0, "widths", "must be one or more, above 0")
        for name in ("image_size", "std"):
            self._require(getattr(self, name) > 0, name, "must be above 0")
        for name in ("dropout", "label_smoothing", "scale"):
            self._require(0 <= getattr(self, name) < 1, name, "must lie in [0, 1)")
        for name in ("rotation", "translate", "shear", "brightness", "contrast", "crop_padding"):
            self._require(getattr(self, name) >= 0, name, "must not be negative")
        if self.model != "mlp":
            side = 2 ** (len(self.widths) - 1)
            what = f"must be a multiple of {side} to halve evenly"
            self._require(self.image_size % side == 0, "image_size", what)


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


def load(config: Config) -> ImageDataset:
    """Opens the config's dataset."""
    size = (config.image_size, config.image_size)
    if config.dataset == "digits":
        return digits()
    if config.dataset == "folder":
        if config.folder is None:
            raise UserError("--dataset folder needs --folder PATH, with train/CLASS/*.png in it")
        return image_folder(config.folder, size=size, channels=config.channels)
    return tfds_images(
        config.dataset, data_dir=config.data_dir, manual_dir=config.manual_dir, size=size
    )


def make_model(config: Config, classes: int) -> nn.Module:
    """Makes the config's network."""
    shared = {"classes": classes, "widths": config.widths, "dropout": config.dropout}
    if config.model == "mlp":
        return MLP(activation=config.activation, dtype=config.dtype, **shared)
    return {"reference": ReferenceCNN, "residual": ResidualCNN}[config.model](
        dtype=config.dtype, **shared
    )


def logits_of(model: nn.Module, params: Params, x: Array, **kwargs: Any) -> Array:
    """Applies the network to prepared images; `train` and `rngs` are its own."""
    return model.apply({"params": params}, x, **kwargs)  # pyright: ignore[reportReturnType]


def prepare(config: Config, images: Array, key: Key | None) -> Array:
    """Brings uint8 images to what the network takes; augments them where there is a key."""
    x = augment.resize(augment.to_float(images), (config.image_size, config.image_size))
    if key is not None:
        if config.translate or config.scale or config.shear:
            zoom = (1 - config.scale, 1 + config.scale)
            x = augment.affine(
                derive(key, "affine"), x, degrees=config.rotation, translate=config.translate,
                scale=zoom, shear=config.shear,
            )  # fmt: skip
        elif config.rotation:
            x = augment.rotate(derive(key, "rotate"), x, config.rotation)
        if config.brightness or config.contrast:
            jitter = {"brightness": config.brightness, "contrast": config.contrast}
            x = augment.jitter(derive(key, "jitter"), x, **jitter)
        if config.flip:
            x = augment.flip(derive(key, "flip"), x)
        if config.crop_padding:
            x = augment.pad_and_crop(derive(key, "crop"), x, config.crop_padding)
    x = augment.to_channels(x, config.channels)
    return augment.normalise(x, config.mean, config.std)


def make_loss(config: Config, model: nn.Module) -> Loss:
    """Makes the cross-entropy of the network on augmented images."""

    def loss(params, model_state, batch, key, *, train):
        x = prepare(config, batch["image"], derive(key, "augment") if train else None)
        rngs = {"dropout": derive(key, "dropout")} if train else None
        logits = logits_of(model, params, x, train=train, rngs=rngs)
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
    shape = (config.image_size, config.image_size, config.channels)
    test = make_pipeline(data.test, config.eval_batch_size, seed=None, workers=config.workers)

    def init(key: Key):
        return model.init(key, jnp.zeros((1, *shape)), train=False)["params"], {}

    def classify(state: TrainState, batch):
        x = prepare(config, batch["image"], None)
        logits = logits_of(model, state.weights, x, train=False)
        return batch["label"], jax.nn.softmax(logits), batch["mask"]

    def preview(workdir: Workdir) -> None:
        # From all over the set: folders are sorted by class.
        numbers = np.linspace(0, len(data.train) - 1, min(8, len(data.train))).astype(int)
        rows = [data.train[int(i)] for i in numbers]
        images = jnp.asarray(np.stack([row["image"] for row in rows]))

        @jax.jit
        def shown(key):
            return augment.denormalise(prepare(config, images, key), config.mean, config.std)

        sheet = [shown(None), *(shown(jax.random.key(i)) for i in range(3))]
        titles = [data.classes[int(row["label"])] for row in rows] * len(sheet)
        draw_images(
            np.concatenate(sheet), titles, workdir.figures / "inputs.png", columns=len(rows),
            heading="training images: as they are, then augmented three times",
        )  # fmt: skip

    def finish(state: TrainState, workdir: Workdir, placement: Placement) -> dict[str, Any]:
        predictions = predict_all(over_batches(classify, test, placement=placement), state)
        return report_predictions(predictions, data.test, data.classes, workdir.figures)

    about = {"classes": data.classes, "stored_shape": data.train[0]["image"].shape}
    about |= {name: getattr(config, name) for name in ("image_size", "channels", "mean", "std")}
    return Experiment(
        dataset=data.name,
        model=model,
        about={**about, "input_shape": shape},
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig(VerbConfig):
    """Options of `predict`."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Picture files."""
    top: int = 3
    """Classes to print for each."""
    invert: bool = False
    """Invert the pictures: for dark strokes on white paper, where training had the reverse."""


def predict(options: PredictConfig) -> None:
    """Prints the most probable classes of each picture file."""
    if not options.images:
        raise UserError("predict needs a picture file, or several")
    CompilationCache()
    model, params, about = load_model(Workdir(options.workdir).model)
    config = Config(**{name: about[name] for name in ("image_size", "channels", "mean", "std")})
    height, width, channels = about["stored_shape"]
    pictures = [decode_image(p, size=(height, width), channels=channels) for p in options.images]
    images = np.stack(pictures)
    images = 255 - images if options.invert else images

    @jax.jit
    def classify(params, images):
        return jax.nn.softmax(logits_of(model, params, prepare(config, images, None), train=False))

    probabilities = classify(params, images)
    for path, row in zip(options.images, np.asarray(probabilities), strict=True):
        best = row.argsort()[::-1][: options.top]
        say(f"{path}  " + "  ".join(f"{about['classes'][i]} {row[i]:.4f}" for i in best))


SCRIPT = Script(
    name="image_classification", presets=PRESETS, build=build, verbs={"predict": predict}
)

if __name__ == "__main__":
    SCRIPT.main()
