"""The reference CNN and its recipe, in jaxdl against PyTorch.

python -m benchmarks.reference_cnn --help
python -m benchmarks.reference_cnn                      # about 10 minutes on two cores
python -m benchmarks.reference_cnn --steps 938          # whole epochs of MNIST's size
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import (
    Call,
    Side,
    apart,
    compare,
    emit,
    finish,
    import_torch,
    matmul_peak,
    run,
    torch_device,
    torch_name,
)
from experiments.image_classification import PRESETS, make_loss, make_model
from jaxdl.data import ArraySource, make_pipeline
from jaxdl.keys import derive
from jaxdl.losses import softmax_cross_entropy
from jaxdl.malloc import keep_memory
from jaxdl.metrics import Mean, Metrics
from jaxdl.run.images import prepare
from jaxdl.train import Aux, Loss, TrainState, fit, make_train_step
from jaxdl.train.optim import adam
from jaxdl.types import Batch, Step

RECIPE = PRESETS["mnist"]
CLASSES = 10
EXAMPLES = 60_000  # as MNIST: noise in its shape, for the time does not depend on what is drawn
SIZE = (48, 48, 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of this benchmark."""

    rounds: int = 9
    """Pairs of measurements."""
    warmup: int = 2
    """Pairs before them that are not counted."""
    steps: int = 8
    """Steps in a measured slice of an epoch; 938 are the whole of MNIST's."""
    repeat: int | None = None
    """Train steps in one measurement of the step alone [default: 1 on CPU, 50 on a GPU]."""
    batch_size: int = 64
    """Examples in a batch."""
    channels_last: bool = False
    """Let PyTorch keep its images and weights channels last."""


def train_step_flops(batch_size: int) -> float:
    """Counts the operations of a train step of the reference CNN at 48x48x3 with 10 classes.

    A convolution takes 2 b h w 3 3 c o, a dense layer 2 b i o, forward; backward the same for the
    weights and the same for the inputs, which the first layer does not need. 37 GFLOP at 64. All
    else (activations, pools, dropout, the optimiser) is left out.
    """
    convs = [(48 * 48, 3, 32), (48 * 48, 32, 64), (24 * 24, 64, 128)]
    forward = [2 * 9 * pixels * c * o for pixels, c, o in convs]
    forward += [2 * i * o for i, o in [(12 * 12 * 128, 512), (512, CLASSES)]]
    return float(batch_size * (3 * sum(forward) - forward[0]))


def jaxdl_state(tx) -> tuple[TrainState, Loss]:
    """Initialises the network; its loss takes images that are prepared already."""
    model = make_model(RECIPE, CLASSES)

    def init(key):
        return model.init(key, jnp.zeros((1, *SIZE)), train=False)["params"], {}

    def loss(params, model_state, batch, key, *, train):
        rngs = {"dropout": derive(key, "dropout")}
        logits: Any = model.apply({"params": params}, batch["image"], train=train, rngs=rngs)
        mean = Mean.of(softmax_cross_entropy(logits, batch["label"]))
        return mean, Aux({"loss": mean}, model_state)

    state = jax.jit(lambda key: TrainState.create(init, tx, key))(jax.random.key(0))
    return state, loss


def optimiser():
    """Makes the recipe's Adam: 1e-3, with 1e-4 of decay coupled into the gradient."""
    return adam(RECIPE.learning_rate, decay=RECIPE.weight_decay)


def jaxdl_steps(options: Options, count: int) -> Side:
    """The train step alone, `count` times on one batch that lies on the device."""

    def prepare_side() -> Call:
        state, loss = jaxdl_state(optimiser())
        step: Step[TrainState, Batch, Metrics] = make_train_step(loss, optimiser())
        images, labels = noise(options.batch_size)
        batch = {"image": prepare(RECIPE, jnp.asarray(images), None), "label": jnp.asarray(labels)}
        compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()

        def call() -> None:
            nonlocal state
            for _ in range(count):
                state, metrics = compiled(state, batch)
            jax.block_until_ready((state, metrics))

        call()
        return call

    flops = count * train_step_flops(options.batch_size)
    return Side(name="jaxdl", prepare=prepare_side, flops=flops)


def jaxdl_epoch(options: Options) -> Side:
    """A slice of an epoch by `fit`: batches, augmentation, steps, metrics; no evaluation."""

    def prepare_side() -> Call:
        images, labels = noise(EXAMPLES)
        source = ArraySource({"image": images, "label": labels})
        data = make_pipeline(source, options.batch_size, seed=0)
        state, _ = jaxdl_state(optimiser())
        step = make_train_step(make_loss(RECIPE, make_model(RECIPE, CLASSES)), optimiser())
        chunk = 1 if jax.default_backend() == "cpu" else min(options.steps, 50)
        run = fit(step, state, data, until=sys.maxsize, every=[options.steps], chunk=chunk)

        def call() -> None:
            interval = next(run)
            jax.block_until_ready((interval.state, interval.metrics))

        call()  # compiles
        return call

    flops = options.steps * train_step_flops(options.batch_size)
    return Side(name="jaxdl", prepare=prepare_side, flops=flops)


def torch_network(options: Options, *, compiled: bool):
    """Makes the same network, and its train step, in PyTorch."""
    torch = import_torch()
    from benchmarks.torch_reference import TorchCNN, make_step

    torch.manual_seed(0)
    form = torch.channels_last if options.channels_last else torch.contiguous_format
    network = TorchCNN(CLASSES).to(torch_device())
    torch.nn.utils.convert_conv2d_weight_memory_format(network, form)
    tx = torch.optim.Adam(
        network.parameters(), RECIPE.learning_rate, weight_decay=RECIPE.weight_decay
    )
    step = make_step(torch.compile(network) if compiled else network, tx)
    return lambda images, labels: step(images.contiguous(memory_format=form), labels)


def torch_steps(options: Options, count: int, *, compiled: bool) -> Side:
    """The train step alone in PyTorch, `count` times on one batch."""

    def prepare_side() -> Call:
        torch = import_torch()
        step = torch_network(options, compiled=compiled)
        images, labels = noise(options.batch_size)
        x = np.asarray(prepare(RECIPE, jnp.asarray(images), None)).transpose(0, 3, 1, 2)
        batch = torch.tensor(x).to(torch_device()), torch.tensor(labels).long().to(torch_device())

        def call() -> None:
            for _ in range(count):
                loss = step(*batch)
            finish(loss)

        call()  # compiles, or fills the caches of its allocator
        return call

    flops = count * train_step_flops(options.batch_size)
    return Side(name=torch_name(compiled), prepare=prepare_side, flops=flops)


def torch_epoch(options: Options, *, compiled: bool) -> Side:
    """A slice of an epoch in PyTorch: batches and augmentation on the device, steps, losses."""

    def prepare_side() -> Call:
        torch = import_torch()
        from benchmarks.torch_reference import epoch

        step = torch_network(options, compiled=compiled)
        images, labels = noise(EXAMPLES)
        x = torch.tensor(images.transpose(0, 3, 1, 2)).to(torch_device())
        y = torch.tensor(labels).long().to(torch_device())
        endless = itertools.chain.from_iterable(
            epoch(x, y, options.batch_size) for _ in itertools.count()
        )

        def call() -> None:
            total = torch.zeros((), device=torch_device())
            for images, labels in itertools.islice(endless, options.steps):
                total += step(images, labels)
            finish(total)

        call()
        return call

    flops = options.steps * train_step_flops(options.batch_size)
    return Side(name=torch_name(compiled), prepare=prepare_side, flops=flops)


def noise(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws uint8 images [b, 28, 28, 1] and int32 labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 28, 28, 1), np.uint8)
    return images, rng.integers(0, CLASSES, count, np.int32)


def main(options: Options) -> None:
    """Prints one line of JSON for each comparison."""
    kept, torch = keep_memory(), import_torch()
    on_gpu = jax.default_backend() != "cpu"
    repeat = options.repeat or (50 if on_gpu else 1)
    shared = {"rounds": options.rounds, "warmup": options.warmup, "peak": matmul_peak()}
    about = {"batch_size": options.batch_size, "channels_last": options.channels_last}
    about |= {"torch_threads": torch.get_num_threads(), "memory_kept": kept}
    for compiled in (False, True) if on_gpu else (False,):
        ours, theirs = (
            jaxdl_steps(options, repeat),
            apart(torch_steps, options, repeat, compiled=compiled),
        )
        emit(compare("train step", ours, theirs, steps=repeat, **shared, **about))
        ours, theirs = jaxdl_epoch(options), apart(torch_epoch, options, compiled=compiled)
        emit(compare("epoch", ours, theirs, steps=options.steps, **shared, **about))
    alone = dataclasses.replace(jaxdl_steps(options, options.steps), name="jaxdl, steps alone")
    whole = dataclasses.replace(jaxdl_epoch(options), name="jaxdl, epoch")
    emit(compare("overhead", alone, whole, steps=options.steps, **shared, **about))


if __name__ == "__main__":
    run(main, Options, __doc__)
