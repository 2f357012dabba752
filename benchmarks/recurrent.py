"""A recurrent language model of characters, in jaxdl against torch.nn.LSTM.

python -m benchmarks.recurrent --help
python -m benchmarks.recurrent                     # about 5 minutes on two cores
python -m benchmarks.recurrent --time 32           # a quarter of the work
"""

from __future__ import annotations

import dataclasses

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
)
from benchmarks.language import draw_tokens, generation_side, language_task
from benchmarks.task import Task
from jaxdl.malloc import keep_memory
from jaxdl.models import RecurrentLM
from jaxdl.sampling import greedy
from jaxdl.train.optim import adam, clipped

RATE, CLIP = 1e-3, 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of this benchmark."""

    rounds: int = 7
    """Pairs of measurements."""
    warmup: int = 2
    """Pairs before them that are not counted."""
    batch_size: int = 64
    """Sequences in a batch."""
    time: int = 128
    """Steps of a sequence, and tokens that are generated."""
    width: int = 512
    """Units of the embedding and of each layer."""
    layers: int = 2
    """Recurrent layers."""
    vocabulary: int = 100
    """Characters."""
    chunk: int = 16
    """Steps of a chunk where the network is rematerialised."""


def train_step_flops(options: Options) -> float:
    """Counts the operations of the matrix products of a train step.

    A layer takes 2 (d + h) 4 h a token forward, the output 2 h v, and the backward pass twice as
    much. The embedding, the gates, clipping and the optimiser are left out.
    """
    width, tokens = options.width, options.batch_size * options.time
    layers = options.layers * 2 * (2 * width) * 4 * width
    return 3.0 * tokens * (layers + 2 * width * options.vocabulary)


def make_model(options: Options, chunk: int | None = None) -> RecurrentLM:
    sizes = {"width": options.width, "layers": options.layers, "chunk": chunk}
    return RecurrentLM(options.vocabulary, **sizes)


def make_tokens(options: Options) -> np.ndarray:
    return draw_tokens(options.vocabulary, options.batch_size, options.time + 1)


def make_task(options: Options, chunk: int | None = None) -> Task:
    """Makes the train step: forward, backward, clipping, Adam."""
    tx = clipped(adam(RATE), CLIP)
    return language_task(make_model(options, chunk), tx, make_tokens(options))


def jaxdl_step(options: Options, name: str = "jaxdl") -> Side:
    """The train step in jaxdl."""
    return make_task(options).side(name, flops=train_step_flops(options))


def torch_model(options: Options):
    torch = import_torch()
    torch.manual_seed(0)
    width = options.width
    model = torch.nn.ModuleDict({
        "encoder": torch.nn.Embedding(options.vocabulary, width),
        "rnn": torch.nn.LSTM(width, width, options.layers, batch_first=True),
        "decoder": torch.nn.Linear(width, options.vocabulary),
    })  # fmt: skip
    return model.to(torch_device())


def torch_step(options: Options) -> Side:
    """The same train step in PyTorch."""

    def prepare() -> Call:
        torch = import_torch()
        model = torch_model(options)
        tx = torch.optim.Adam(model.parameters(), RATE)
        tokens = torch.tensor(make_tokens(options)).long().to(torch_device())

        def call() -> None:
            tx.zero_grad(set_to_none=True)
            y, _ = model["rnn"](model["encoder"](tokens[:, :-1]))
            logits = model["decoder"](y).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            tx.step()
            finish(loss)

        call()
        return call

    return Side(name="torch, eager", prepare=prepare, flops=train_step_flops(options))


def torch_generation(options: Options, b: int) -> Side:
    """The same in PyTorch: a loop in Python, token by token."""

    def prepare() -> Call:
        torch = import_torch()
        model = torch_model(options).eval()
        first = torch.tensor(make_tokens(options)[:b, :1]).long().to(torch_device())

        def call() -> None:
            tokens, carry = first, None
            with torch.inference_mode():
                for _ in range(options.time):
                    y, carry = model["rnn"](model["encoder"](tokens), carry)
                    tokens = model["decoder"](y).argmax(-1)
            finish(tokens)

        call()
        return call

    return Side(name="torch, eager", prepare=prepare)


def main(options: Options) -> None:
    """Prints one line of JSON for each comparison."""
    kept, torch = keep_memory(), import_torch()
    shared = {"rounds": options.rounds, "warmup": options.warmup, "peak": matmul_peak()}
    about = {k: v for k, v in dataclasses.asdict(options).items() if k not in shared}
    about |= {"torch_threads": torch.get_num_threads(), "memory_kept": kept}
    step = compare(
        "recurrent train step", jaxdl_step(options), apart(torch_step, options), **shared, **about
    )
    emit(step)
    for b in (1, 8):
        first = make_tokens(options)[:b, :1]
        ours = generation_side(make_model(options), first, sampler=greedy, limit=options.time)
        sides = ours, apart(torch_generation, options, b)
        emit(compare("recurrent generation", *sides, **shared, **about | {"batch_size": b}))
    double = dataclasses.replace(options, time=2 * options.time)
    twice = jaxdl_step(double, name="jaxdl, twice as long")
    emit(compare("recurrent length", jaxdl_step(options), twice, **shared, **about))
    task, chunked = make_task(options), make_task(options, options.chunk)
    memory = {"a_bytes": task.temporary_bytes(), "b_bytes": chunked.temporary_bytes()}
    name = f"jaxdl, chunks of {options.chunk}"
    flops = train_step_flops(options)
    sides = task.side(flops=flops), chunked.side(name, flops=flops)
    emit(compare("recurrent remat", *sides, **shared, **about, **memory))


if __name__ == "__main__":
    run(main, Options, __doc__)
