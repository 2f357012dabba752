"""A causal transformer of characters, in jaxdl against the same in eager PyTorch.

python -m benchmarks.transformer --help
python -m benchmarks.transformer                   # nanoGPT's setting for a CPU, about 4 minutes
python -m benchmarks.transformer --layers 2        # half of the work
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

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
from benchmarks.language import (
    draw_tokens,
    generation_side,
    init_params,
    language_task,
)
from benchmarks.task import Task
from jaxdl.malloc import keep_memory
from jaxdl.models import TransformerLM
from jaxdl.sampling import Sample, Temperature
from jaxdl.train.optim import adamw, clipped

RATE, DECAY, CLIP, TEMPERATURE = 1e-3, 0.1, 1.0, 0.8
Style = Literal["gpt2", "modern"]
Precision = Literal["float32", "bf16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What a train step is measured on."""

    rounds: int = 25
    """Pairs of measurements of the train step."""
    warmup: int = 3
    """Pairs before them that are not counted."""
    batch_size: int = 12
    """Sequences in a batch."""
    time: int = 64
    """Tokens of a sequence, and that the network sees at once."""
    width: int = 128
    """Units of the embedding and of each layer."""
    layers: int = 4
    """Blocks."""
    heads: int = 4
    """Heads of attention."""
    vocabulary: int = 65
    """Tokens that there are."""
    steps: int = 10
    """Train steps of a measurement."""
    precision: Precision = "float32"
    """What is computed in; with bf16 parameters, gradients and the optimiser stay float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Setting):
    """Options of this benchmark; of what is no train step a fifth of the rounds are measured."""

    tokens: int = 500
    """Tokens that are generated."""
    deep: int = 24
    """Blocks of the deeper stack, of the two that are compiled as a scan."""


def train_step_flops(options: Setting, style: Style = "gpt2") -> float:
    """Counts the operations of the matrix products of a train step.

    With d the width and h the units of the MLP a block takes 8 d^2 for attention's projections,
    4 d t for its products, all of them although half is masked, and 4 d h, or 6 d h with a gate, a
    token forward, the output 2 d v, and the backward pass twice as much. The embedding, what is
    done to single elements, clipping and the optimiser are left out.
    """
    d, t = options.width, options.time
    mlp = 4 * 4 * d * d if style == "gpt2" else 6 * d * (8 * d // 48 * 16)
    block = 8 * d * d + 4 * d * t + mlp
    return 3.0 * options.batch_size * t * (options.layers * block + 2 * d * options.vocabulary)


def make_model(options: Setting, style: Style = "gpt2", **changes: Any) -> TransformerLM:
    sizes = {"width": options.width, "layers": options.layers, "heads": options.heads}
    sizes |= {"limit": options.time, "dtype": jnp.bfloat16 if options.precision == "bf16" else None}
    return TransformerLM(options.vocabulary, style=style, **sizes | changes)


def make_tokens(options: Setting) -> np.ndarray:
    return draw_tokens(options.vocabulary, options.batch_size, options.time + 1)


def make_task(options: Setting, style: Style = "gpt2", **changes: Any) -> Task:
    """Makes the train step: forward, backward, clipping, AdamW."""
    tx = clipped(adamw(RATE, decay=DECAY), CLIP)
    return language_task(make_model(options, style, **changes), tx, make_tokens(options))


def jaxdl_steps(options: Setting, style: Style) -> Side:
    """Train steps in jaxdl."""
    flops = train_step_flops(options, style)
    return make_task(options, style).side(flops=flops, steps=options.steps)


def torch_steps(options: Setting, style: Style, *, compiled: bool = False) -> Side:
    """The same train steps in PyTorch."""

    def prepare() -> Call:
        step = make_torch_step(options, style, compiled=compiled)

        def call() -> None:
            for _ in range(options.steps):
                loss = step()
            finish(loss)

        call()
        return call

    flops = options.steps * train_step_flops(options, style)
    return Side(name=torch_name(compiled), prepare=prepare, flops=flops)


def make_torch_step(options: Setting, style: Style, *, compiled: bool = False) -> Any:
    """Returns what takes a step and returns the loss before it, from jaxdl's own start."""
    torch = import_torch()
    from benchmarks.torch_gpt import torch_adamw, torch_gpt

    model, device = make_model(options, style), torch_device()
    network = torch_gpt(model, init_params(model)).to(device)
    tx = torch_adamw(network, RATE, decay=DECAY)
    tokens = torch.tensor(make_tokens(options)).long().to(device)

    def mean_loss() -> torch.Tensor:
        logits = network(tokens[:, :-1]).flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())

    forward = torch.compile(mean_loss) if compiled else mean_loss

    def step() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = forward()
        tx.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        tx.step()
        return loss.detach()

    return step


def jaxdl_generation(options: Options) -> Side:
    """Generation with a cache, compiled as one program."""
    model, first = make_model(options), make_tokens(options)[:1, :1]
    sampler = Sample(Temperature(TEMPERATURE))
    return generation_side(model, first, sampler=sampler, limit=options.tokens)


def torch_generation(options: Options) -> Side:
    """Generation without one in PyTorch, as nanoGPT does it."""

    def prepare() -> Call:
        torch = import_torch()
        from benchmarks.torch_gpt import torch_gpt

        model = make_model(options)
        network = torch_gpt(model, init_params(model)).to(torch_device()).eval()
        first = torch.tensor(make_tokens(options)[:1, :1]).long().to(torch_device())

        def call() -> None:
            finish(network.generate(first, limit=options.tokens, temperature=TEMPERATURE))

        call()
        return call

    return Side(name="torch, eager, without a cache", prepare=prepare)


def compilation(options: Options, layers: int) -> Side:
    """Tracing and compiling the train step of a scanned stack."""

    def prepare() -> Call:
        def call() -> None:
            make_task(options, layers=layers, scan=True).compile()

        return call

    return Side(name=f"jaxdl, {layers} layers, scanned", prepare=prepare)


def main(options: Options) -> None:
    """Prints one line of JSON for each comparison."""
    kept, torch = keep_memory(), import_torch()
    shared = {"warmup": options.warmup, "peak": matmul_peak()}
    about = {k: v for k, v in dataclasses.asdict(options).items() if k not in ("rounds", "warmup")}
    about |= {"torch_threads": torch.get_num_threads(), "memory_kept": kept}
    for style in ("gpt2", "modern"):
        sides = jaxdl_steps(options, style), apart(torch_steps, options, style)
        more = about | {"a_bytes": make_task(options, style).temporary_bytes()}
        line = compare(
            "transformer train step", *sides, rounds=options.rounds, style=style, **shared, **more
        )
        emit(line)
    few = max(1, options.rounds // 5)
    sides = jaxdl_generation(options), apart(torch_generation, options)
    emit(compare("transformer generation", *sides, rounds=few, **shared, **about))
    sides = compilation(options, options.layers), compilation(options, options.deep)
    emit(compare("transformer compilation", *sides, rounds=few, **shared | {"warmup": 1}, **about))


if __name__ == "__main__":
    run(main, Options, __doc__)
