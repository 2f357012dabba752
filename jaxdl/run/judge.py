"""A judge of generated images: the reference CNN, trained on the real ones of the same set.

What it says depends on it, so its own accuracy on held-out images is told beside what it says.
Small images it sees enlarged.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdl.data import ImageDataset, make_pipeline
from jaxdl.data import images as augment
from jaxdl.errors import UserError
from jaxdl.interop.safetensors import load_model, save_model
from jaxdl.keys import derive
from jaxdl.losses import softmax_cross_entropy
from jaxdl.metrics import Mean
from jaxdl.models import ReferenceCNN
from jaxdl.models.apply import apply, initialise
from jaxdl.run.hosts import by_first, gathered, is_first
from jaxdl.run.images import ImageConfig, augmented
from jaxdl.run.progress import say
from jaxdl.train import Aux, Loss, TrainState, fit, make_train_step
from jaxdl.train.optim import adam, cosine
from jaxdl.train.sharding import Placement
from jaxdl.types import Key, Params

AT_ONCE = 256  # images that are looked at
LEAST = 16  # pixels a side of what the judge sees
DECAY = 0.98  # of the average of its parameters
# What it is trained on beside the images themselves; nothing that would change a digit's class.
AUGMENTATION = ImageConfig(rotation=10, translate=0.08, scale=0.1, shear=8)


class Seen(NamedTuple):
    """What the judge makes of images."""

    probabilities: Float[np.ndarray, "b v"]
    features: Float[np.ndarray, "b d"]  # the units before its last layer

    @property
    def classes(self) -> np.ndarray:
        """The most probable class of each."""
        return self.probabilities.argmax(-1)


@dataclasses.dataclass(frozen=True)
class Judge:
    """A trained classifier of images in [0, 1]."""

    model: ReferenceCNN
    params: Params

    def look(self, images: Float[np.ndarray, "b h w c"]) -> Seen:
        """Classifies images, some at a time."""
        parts = [
            _look(self.model, self.params, images[start : start + AT_ONCE])
            for start in range(0, len(images), AT_ONCE)
        ]
        return Seen(*(np.concatenate(part) for part in zip(*parts, strict=True)))


@functools.partial(jax.jit, static_argnames="model")
def _look(model: ReferenceCNN, params: Params, images: Array) -> tuple[Array, Array]:
    capture = lambda module, _: module.name == "fc1"  # noqa: E731
    logits, seen = model.apply(
        {"params": params}, inputs(images), train=False, capture_intermediates=capture,
        mutable=["intermediates"],
    )  # fmt: skip
    ((hidden,),) = jax.tree.leaves(seen, is_leaf=lambda x: isinstance(x, tuple))
    return jax.nn.softmax(logits), jax.nn.relu(hidden)


def inputs(images: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
    """Brings images in [0, 1] to what the judge takes: normalised, and enlarged where small."""
    height, width = (-(-max(side, LEAST) // 4) * 4 for side in images.shape[1:3])
    return augment.normalise(augment.resize(images, (height, width)), 0.5, 0.5)


def pictures(config: ImageConfig, images: Array) -> Float[Array, "b h w c"]:
    """Brings stored uint8 images to the size and channels of generated ones, in [0, 1]."""
    x = augment.resize(augment.to_float(images), config.size)
    return augment.to_channels(x, config.channels)


def trained_judge(
    config: ImageConfig, data: ImageDataset, folder: Path, *, epochs: int, placement: Placement
) -> Judge:
    """Reads the judge that `folder` holds, process 0's, or trains one and writes it there.

    Adam at 1e-3 on batches of the config's size, along half a cosine, augmented; the average of its
    parameters is kept.
    """
    # The folders of the others vanish; process 0's all can see, as they see the checkpoints.
    folder = Path(by_first(str(folder.absolute())))
    if (judge := read_judge(folder)) is not None:
        return judge
    started = time.monotonic()
    model = ReferenceCNN(classes=len(data.classes))
    batches = make_pipeline(data.train, config.batch_size, seed=config.seed, workers=config.workers)
    steps = epochs * len(batches)
    tx = adam(cosine(1e-3, warmup=20, steps=steps))
    x = jax.eval_shape(lambda: inputs(jnp.zeros((1, *config.input_shape))))

    def create(key: Key) -> TrainState:
        init: Any = lambda key: initialise(model, key, jnp.zeros(x.shape))  # noqa: E731
        return TrainState.create(init, tx, key, ema=True)

    step = make_train_step(judge_loss(config, model), tx, ema_decay=DECAY)
    placement = dataclasses.replace(placement, parallel="jit", rules=())
    state = jax.jit(create)(jax.random.key(config.seed))
    for interval in fit(step, state, batches, until=steps, every=[steps], placement=placement):
        state = interval.state
    params = gathered(state.weights)
    if is_first():
        save_model(folder, model, params, about={"input_shape": x.shape[1:]})
    seconds = time.monotonic() - started
    say(f"{'judge':<10}{epochs} epochs of real images ({seconds:.0f} s)")
    return Judge(model, params)


def read_judge(folder: Path) -> Judge | None:
    """Reads the judge that `folder` holds; None where there is none, or not the whole of one."""
    try:
        model, params, _, _ = load_model(folder)
    except UserError:
        return None
    return Judge(model, params) if isinstance(model, ReferenceCNN) else None


def judge_loss(config: ImageConfig, model: ReferenceCNN) -> Loss:
    """Makes the cross-entropy of the judge on real images, as generated ones would come."""

    def loss(params, model_state, batch, key, *, train):
        x = pictures(config, batch["image"])
        x = augmented(AUGMENTATION, x, derive(key, "augment")) if train else x
        rngs = {"dropout": derive(key, "dropout")} if train else None
        logits, model_state = apply(model, params, model_state, inputs(x), train=train, rngs=rngs)
        mean = Mean.of(softmax_cross_entropy(logits, batch["label"]), batch.get("mask"))
        return mean, Aux({"loss": mean}, model_state)

    return loss
