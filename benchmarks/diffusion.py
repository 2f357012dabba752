"""A U-Net that takes noise off images, in jaxdl against denoising-diffusion-pytorch, both on CPU.

python -m benchmarks.diffusion --help
python -m benchmarks.diffusion                     # MNIST's shape, about 10 minutes
python -m benchmarks.diffusion --batch-size 16     # a quarter of the work
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Call, Side, apart, compare, emit, import_torch, run
from benchmarks.task import Task
from jaxdl.decode import row_keys
from jaxdl.diffusion import DDIM, Cosine, V, clip, denoiser, denoising_loss, prior, sample, trailing
from jaxdl.errors import UserError
from jaxdl.keys import derive
from jaxdl.malloc import keep_memory
from jaxdl.metrics import Mean
from jaxdl.models import UNet
from jaxdl.train import Aux
from jaxdl.train.optim import adam, clipped

RATE, CLIP = 1e-3, 1.0
PEER = "denoising-diffusion-pytorch==2.3.4"
# Without it jaxlib 0.10 on CPU finds what is computed again the same as what was there, and keeps
# both: nothing is rematerialised. From 0.12 on it changes nothing.
BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of this benchmark."""

    rounds: int = 15
    """Pairs of measurements of the train step; of sampling a third as many."""
    warmup: int = 2
    """Pairs before them that are not counted."""
    batch_size: int = 64
    """Images in a batch, and images that are sampled at once."""
    image_size: int = 28
    """Pixels a side, divisible by 4."""
    channels: int = 1
    """Channels of an image."""
    width: int = 32
    """Channels of the first level; of the other two twice as many."""
    train_steps: int = 5
    """Train steps in a measurement; the first finds in the caches what another process left."""
    steps: int = 50
    """Steps of DDIM."""


def make_model(options: Options, *, remat: bool = False) -> UNet:
    return UNet(options.channels, width=options.width, multipliers=(1, 2, 2), remat=remat)


def make_images(options: Options) -> np.ndarray:
    """Draws noise in [-1, 1], [b h w c], the same every time."""
    shape = options.batch_size, options.image_size, options.image_size, options.channels
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def init_params(options: Options) -> Any:
    x = jnp.zeros((1, options.image_size, options.image_size, options.channels))
    init = lambda key: make_model(options).init(key, x, jnp.zeros(1), train=False)  # noqa: E731
    return jax.jit(init)(jax.random.key(0))["params"]


def make_task(options: Options, *, remat: bool = False) -> Task:
    """Makes the train step: time and noise drawn, forward, backward, clipping, Adam."""
    model = make_model(options, remat=remat)

    def loss(params, model_state, batch, key, *, train):
        def network(x, time):
            return model.apply({"params": params}, x, time, train=train)

        keys = row_keys(derive(key, "noise"), options.batch_size)
        errors = denoising_loss(network, batch["image"], keys, schedule=Cosine(), prediction=V())
        mean = Mean.of(errors.mean((1, 2, 3)))
        return mean, Aux({"loss": mean}, model_state)

    images = {"image": jnp.asarray(make_images(options))}
    return Task(loss, partial(init_params, options), clipped(adam(RATE), CLIP), images)


def compile_sampler(options: Options, steps: int) -> Any:
    """Returns compiled DDIM, of parameters and keys."""
    model, schedule = make_model(options), Cosine()
    shape = make_images(options).shape[1:]

    def draw(params, keys):
        network = lambda x, time: model.apply({"params": params}, x, time, train=False)  # noqa: E731
        grid = trailing(schedule, steps)
        denoise = clip(denoiser(network, schedule, V()))
        return sample(denoise, prior(keys, shape, grid), grid, solver=DDIM(), keys=keys)

    keys = row_keys(jax.random.key(1), options.batch_size)
    return jax.jit(draw).lower(init_params(options), keys).compile()


def jaxdl_sampling(options: Options) -> Side:
    """A batch of samples by DDIM, compiled as one program."""

    def prepare() -> Call:
        draw, params = compile_sampler(options, options.steps), init_params(options)
        keys = row_keys(jax.random.key(1), options.batch_size)

        def call() -> None:
            jax.block_until_ready(draw(params, keys))

        call()
        return call

    return Side(name="jaxdl", prepare=prepare)


def peer() -> Any:
    """Imports the peer, or raises UserError."""
    import_torch()
    try:
        from denoising_diffusion_pytorch import denoising_diffusion_pytorch
    except ImportError as error:
        raise UserError(f"this benchmark compares with {PEER}: pip install '{PEER}'") from error
    return denoising_diffusion_pytorch


def peer_diffusion(options: Options) -> Any:
    """Makes the peer's process and its U-Net, of the same widths, stages, blocks and heads.

    Its levels have linear attention where jaxdl's U-Net has none, and there it is taken out. What
    else differs is told in benchmarks/README.md.
    """
    torch, library = import_torch(), peer()

    class Nothing(torch.nn.Module):
        def forward(self, x):
            return x.new_zeros(())  # which is added to x

    torch.manual_seed(0)
    network = library.Unet(
        options.width, dim_mults=(1, 2, 2), channels=options.channels,
        attn_dim_head=2 * options.width // 4,
    )  # fmt: skip
    for level in (*network.downs, *network.ups):
        if isinstance(level[2], library.LinearAttention):
            level[2] = Nothing()
    return library.GaussianDiffusion(
        network, image_size=options.image_size, sampling_timesteps=options.steps,
        objective="pred_v", beta_schedule="cosine",
    )  # fmt: skip


def peer_steps(options: Options) -> Side:
    """The same train steps by the peer, in eager PyTorch."""

    def prepare() -> Call:
        torch = import_torch()
        process = peer_diffusion(options)
        tx = torch.optim.Adam(process.parameters(), RATE)
        images = torch.tensor(make_images(options).transpose(0, 3, 1, 2).copy() / 2 + 0.5)

        def call() -> None:
            for _ in range(options.train_steps):
                tx.zero_grad(set_to_none=True)
                process(images).backward()
                torch.nn.utils.clip_grad_norm_(process.parameters(), CLIP)
                tx.step()

        call()
        return call

    return Side(name=PEER, prepare=prepare)


def peer_sampling(options: Options) -> Side:
    """A batch of samples by the peer's DDIM, in eager PyTorch."""

    def prepare() -> Call:
        process = peer_diffusion(options).eval()

        def call() -> None:
            with open(os.devnull, "w") as silence, contextlib.redirect_stderr(silence):
                process.sample(batch_size=options.batch_size)

        call()
        return call

    return Side(name=PEER, prepare=prepare)


def main(options: Options) -> None:
    """Prints one line of JSON for each comparison."""
    kept, torch = keep_memory(), import_torch()
    if jax.default_backend() != "cpu":
        raise UserError("this benchmark is for a CPU: JAX_PLATFORMS=cpu python -m ...")
    shared: dict[str, Any] = {"rounds": options.rounds, "warmup": options.warmup}
    about = {k: v for k, v in dataclasses.asdict(options).items() if k not in shared}
    about |= {"torch_threads": torch.get_num_threads(), "memory_kept": kept}
    sizes = {
        "a_parameters": sum(leaf.size for leaf in jax.tree.leaves(init_params(options))),
        "b_parameters": sum(p.numel() for p in peer_diffusion(options).model.parameters()),
    }
    task = make_task(options)
    sides = task.side(steps=options.train_steps), apart(peer_steps, options)
    emit(compare("diffusion train step", *sides, **shared, **about, **sizes))

    few: dict[str, Any] = {**shared, "rounds": max(1, options.rounds // 3), "warmup": 1}
    held = {
        str(steps): compile_sampler(options, steps).memory_analysis().temp_size_in_bytes
        for steps in (options.steps // 5, options.steps, 5 * options.steps)
    }
    sides = jaxdl_sampling(options), apart(peer_sampling, options)
    emit(compare("diffusion sampling", *sides, **few, **about, **sizes, a_bytes_by_steps=held))

    whole, remat = (
        make_task(options, remat=on)._replace(compiler_options=BARRIERS) for on in (False, True)
    )
    memory = {"a_bytes": whole.temporary_bytes(), "b_bytes": remat.temporary_bytes()}
    steps = options.train_steps
    sides = whole.side(steps=steps), remat.side("jaxdl, remat", steps=steps)
    emit(compare("diffusion remat", *sides, **few, **about, **memory))


if __name__ == "__main__":
    run(main, Options, __doc__)
