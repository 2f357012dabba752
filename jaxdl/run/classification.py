"""What every classifier of images is reported with: numbers a class, and where it is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from jaxdl.backend import CompilationCache
from jaxdl.data import Source, decode_image
from jaxdl.errors import UserError
from jaxdl.interop.safetensors import load_model
from jaxdl.metrics import confusion_matrix
from jaxdl.models.apply import apply
from jaxdl.run.cli import VerbConfig
from jaxdl.run.hosts import gathered
from jaxdl.run.images import ImageConfig, prepare
from jaxdl.run.progress import say
from jaxdl.run.report import draw_confusion_matrix, draw_images
from jaxdl.run.workdir import Workdir
from jaxdl.train.state import TrainState

# Options that say how a picture is brought to the network; exported with it.
PREPARED = ("image_size", "image_width", "channels", "mean", "std")


class Predictions(NamedTuple):
    """Of each example, in the order of the set, its label and the probability of each class."""

    labels: np.ndarray  # int32 (examples,)
    probabilities: np.ndarray  # float32 (examples, classes)

    @property
    def classes(self) -> np.ndarray:
        """The most probable class of each example."""
        return self.probabilities.argmax(-1)


def predict_all(run: Callable[[TrainState], Any], state: TrainState) -> Predictions:
    """Collects (labels, probabilities, mask) over the batches of `run`, the padding left out."""
    labels, probabilities = [], []
    for outputs in run(state):
        batch_labels, batch_probabilities, mask = gathered(outputs)
        kept = mask.astype(bool)
        labels.append(batch_labels[kept])
        probabilities.append(batch_probabilities[kept])
    return Predictions(np.concatenate(labels), np.concatenate(probabilities))


def report_predictions(
    predictions: Predictions, source: Source, classes: Sequence[str], figures: Path
) -> dict[str, Any]:
    """Prints and draws precision, recall, F1 and confusions; returns them for the report."""
    from sklearn.metrics import classification_report

    labels, predicted = predictions.labels, predictions.classes
    numbers = {
        "labels": range(len(classes)), "target_names": list(classes), "zero_division": 0
    }  # fmt: skip
    text = classification_report(labels, predicted, digits=4, **numbers)
    matrix = confusion_matrix(labels, predicted, len(classes))
    say(f"\n{text}")
    if len(classes) <= 20:
        say(f"confusion matrix (row: true class, column: predicted)\n{table(matrix, classes)}\n")
    draw_confusion_matrix(matrix, classes, figures / "confusion_matrix.png")
    draw_mistakes(predictions, source, classes, figures / "mistakes.png")
    return {
        "classification_report": classification_report(
            labels, predicted, output_dict=True, **numbers
        ),
        "confusion_matrix": matrix.tolist(),
    }


def table(matrix: np.ndarray, classes: Sequence[str]) -> str:
    """Sets a matrix of counts as text, its rows and columns named."""
    width = max(len(str(matrix.max())), *(len(name) for name in classes)) + 2
    rows = [["", *classes], *([name, *row] for name, row in zip(classes, matrix, strict=True))]
    return "\n".join("".join(f"{cell!s:>{width}}" for cell in row) for row in rows)


def draw_mistakes(
    predictions: Predictions, source: Source, classes: Sequence[str], path: Path, *, most: int = 24
) -> None:
    """Draws the mistakes that the model was surest of, each as `true > predicted, probability`."""
    sure = predictions.probabilities.max(-1)
    wrong = np.flatnonzero(predictions.classes != predictions.labels)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")]
    shown = wrong[:most]
    named = lambda i: classes[int(i)]  # noqa: E731
    titles = [
        f"{named(predictions.labels[i])} > {named(predictions.classes[i])}, {sure[i]:.2f}"
        for i in shown
    ]
    images = np.array([source[int(i)]["image"] for i in shown], np.float32) / 255
    heading = f"{len(wrong)} of {len(predictions.labels)} wrong (true > predicted, probability)"
    draw_images(images, titles, path, heading=heading)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig(VerbConfig):
    """Options of `predict`."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Picture files."""
    top: int = 3
    """Classes to print for each."""
    invert: bool = False
    """Invert the pictures: for dark strokes on white paper, where training had the reverse."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        if self.top < 1:
            raise UserError(f"--top must be at least 1, got {self.top}")


def predict(options: PredictConfig) -> None:
    """Prints the most probable classes of each picture file."""
    if not options.images:
        raise UserError("predict needs a picture file, or several")
    CompilationCache()
    folder = Workdir(options.workdir).model
    model, params, model_state, about = load_model(folder)
    if not {"classes", "stored_shape", "mean"} <= about.keys():
        raise UserError(f"{folder} holds no classifier of images")
    config = ImageConfig(**{name: about[name] for name in PREPARED if name in about})
    height, width, channels = about["stored_shape"]
    pictures = [decode_image(p, size=(height, width), channels=channels) for p in options.images]
    images = np.stack(pictures)
    images = 255 - images if options.invert else images

    @jax.jit
    def classify(params, images):
        x = prepare(config, images, None)
        return jax.nn.softmax(apply(model, params, model_state, x)[0])

    probabilities = classify(params, images)
    for path, row in zip(options.images, np.asarray(probabilities), strict=True):
        best = row.argsort()[::-1][: options.top]
        say(f"{path}  " + "  ".join(f"{about['classes'][i]} {row[i]:.4f}" for i in best))
