"""What a trained language model is used for: to write on, and to say how likely a text is."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Int

from jaxdl.backend import CompilationCache
from jaxdl.data.codec import Tokenizer
from jaxdl.data.text import read_text
from jaxdl.data.text_baselines import bits_per_character
from jaxdl.data.tokenizers import load_tokenizer
from jaxdl.decode import Generated, begin, generate, pad_prompts, row_keys, stream
from jaxdl.errors import UserError
from jaxdl.interop.safetensors import load_model
from jaxdl.losses import softmax_cross_entropy
from jaxdl.run.cli import VerbConfig
from jaxdl.run.progress import say
from jaxdl.run.workdir import Workdir
from jaxdl.sampling import Adjustment, Forbid, Sample, Sampler, Temperature, TopK, TopP
from jaxdl.types import Params, PyTree


class LanguageModel(Protocol):
    """A network that writes: its parameters, and a carry of what it has seen, are arguments."""

    @property
    def limit(self) -> int | None:
        """Most tokens that it sees at once; None where it has seen all."""
        ...

    def initial_carry(self, b: int) -> PyTree:
        """Returns the carry before the first token of b rows."""
        ...

    def read(
        self, params: Params, carry: PyTree, tokens: Array, lengths: Array
    ) -> tuple[PyTree, Array]:
        """Reads a ragged batch [b s] at once: the carry, and logits [b v] after each row's last."""
        ...

    def extend(self, params: Params, carry: PyTree, tokens: Array) -> tuple[PyTree, Array]:
        """Reads t more tokens a row, of a limit's half at most: the carry, and logits [b t v]."""
        ...

    def step(self, params: Params, carry: PyTree, tokens: Array) -> tuple[PyTree, Array]:
        """Reads one token a row [b]: the carry, and logits [b v]."""
        ...


class Writer(NamedTuple):
    """A trained language model and its tokeniser."""

    model: LanguageModel
    params: Params
    tokenizer: Tokenizer

    @property
    def step(self) -> jax.tree_util.Partial:
        """The decoding step, with the parameters as arguments of what is compiled."""
        return jax.tree_util.Partial(self.model.step, self.params)

    @property
    def read(self) -> jax.tree_util.Partial:
        """What reads prompts at once, likewise."""
        return jax.tree_util.Partial(self.model.read, self.params)

    def encode(self, prompt: str) -> np.ndarray:
        """Returns a prompt's tokens, the last ones that the model can see; a line feed's of ""."""
        return self.tokenizer.encode(prompt or "\n")[-(self.model.limit or 0) :]

    def write(
        self,
        tokens: Int[Array, "b s"],
        lengths: Int[Array, " b"],
        *,
        sampler: Sampler,
        limit: int,
        stop: tuple[int, ...] = (),
        seed: int = 0,
    ) -> Generated:
        """Continues prompts, as `jaxdl.decode.pad_prompts` sets them side by side."""
        b = len(tokens)
        keys = row_keys(jax.random.key(seed), b)
        return generate(
            self.step, self.model.initial_carry(b), tokens, lengths, keys, read=self.read,
            sampler=sampler, limit=limit, stop=stop,
        )  # fmt: skip


def load_writer(workdir: Path) -> Writer:
    """Reads the model that a run has exported; raises UserError where there is none."""
    CompilationCache()
    folder = Workdir(workdir).model
    model, params, _, _ = load_model(folder)
    if not hasattr(model, "extend"):
        raise UserError(f"{folder} holds no language model")
    return Writer(cast(LanguageModel, model), params, load_tokenizer(folder))


def write_sample(writer: Writer, prompt: str, *, tokens: int, seed: int = 0) -> str:
    """Continues a prompt by so many tokens at temperature 0.8; returns both."""
    sampler = Sample(Forbid(writer.tokenizer.unwritten), Temperature(0.8))
    prompts = pad_prompts([writer.encode(prompt)])
    ends = writer.tokenizer.ends
    written = writer.write(*prompts, sampler=sampler, limit=tokens, stop=ends, seed=seed)
    row = jax.device_get(written.tokens)[0, : int(written.lengths[0])]
    return prompt + writer.tokenizer.decode(row)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig(VerbConfig):
    """Options of `generate`."""

    prompt: str = "\n"
    """What to continue."""
    tokens: int = 500
    """Tokens to write at most."""
    temperature: float = 0.8
    """Below 1 sharpens the distribution, above 1 flattens it; 0 takes the most probable token."""
    top_k: int | None = None
    """Draw from so many most probable tokens alone."""
    top_p: float | None = None
    """Draw from the fewest most probable tokens that have this probability together."""
    stop: str | None = None
    """End where this has been written; it must be one token. GPT-2's own end always ends a text."""
    seed: int = 0
    """Seed of what is drawn."""
    next: int = 0
    """Print so many most probable next tokens first, with their probabilities."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        for wrong, what in (
            (self.tokens < 1, "--tokens must be at least 1"),
            (not 0 <= self.temperature < math.inf, "--temperature must be 0 or more, and finite"),
            (self.top_k is not None and self.top_k < 1, "--top-k must be at least 1"),
            (self.top_p is not None and not 0 < self.top_p <= 1, "--top-p must lie in (0, 1]"),
            (self.next < 0, "--next must not be negative"),
        ):
            if wrong:
                raise UserError(what)

    def sampler(self, never: tuple[int, ...]) -> Sampler:
        """Makes the sampler, which never draws some tokens."""
        if self.temperature == 0:
            return Sample(Forbid(never), TopK(1))
        adjustments: list[Adjustment] = [Forbid(never), Temperature(self.temperature)]
        adjustments += [TopK(self.top_k)] if self.top_k else []
        adjustments += [TopP(self.top_p)] if self.top_p else []
        return Sample(*adjustments)


def write_on(options: GenerateConfig) -> None:
    """Continues a prompt, token by token as they come."""
    writer = load_writer(options.workdir)
    prompts, lengths = pad_prompts([writer.encode(options.prompt)])
    carry, logits = _read(writer.read, writer.model.initial_carry(1), prompts, lengths)
    for token, probability in most_probable(logits[0], options.next):
        say(f"{probability:8.4f}  {writer.tokenizer.decode([token])!r}")
    stop = writer.tokenizer.ends
    if options.stop is not None:
        named = [int(t) for t in writer.encode(options.stop)]
        if len(named) != 1:
            raise UserError(f"--stop {options.stop!r} is {len(named)} tokens; it must be one")
        stop = (*stop, *named)
    pieces = stream(
        writer.step, begin(carry, logits, row_keys(jax.random.key(options.seed), 1)),
        sampler=options.sampler(writer.tokenizer.unwritten), limit=options.tokens, stop=stop,
    )  # fmt: skip
    print(options.prompt, end="", flush=True)
    rows = (piece.tokens[0, : piece.lengths[0]] for piece in pieces)
    for text in writer.tokenizer.decode_stream(rows):
        print(text, end="", flush=True)
    print()


def most_probable(logits: Array, count: int) -> list[tuple[int, float]]:
    """Lists the most probable tokens and their probabilities."""
    if not count:
        return []
    found, tokens = jax.lax.top_k(jax.nn.softmax(logits), min(count, len(logits)))
    return list(zip(np.asarray(tokens).tolist(), np.asarray(found).tolist(), strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig(VerbConfig):
    """Options of `score`."""

    text: tyro.conf.Positional[str | None] = None
    """The text itself."""
    file: Path | None = None
    """Or a file in UTF-8."""
    worst: int = 10
    """Tokens to print that surprised the model most."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        if self.worst < 0:
            raise UserError("--worst must not be negative")


def score(options: ScoreConfig) -> None:
    """Prints how probable a text is, and where it surprises the model most."""
    if (options.text is None) == (options.file is None):
        raise UserError("score takes a text, or --file PATH")
    writer = load_writer(options.workdir)
    text = options.text if options.file is None else read_text(options.file)
    assert text is not None
    tokens = writer.tokenizer.encode(text)
    if len(tokens) < 2:
        raise UserError("a text to score has two tokens at least: the first one is given")
    nats = np.concatenate(list(surprises(writer, tokens)))
    first = writer.tokenizer.decode(tokens[:1])
    bits = bits_per_character(
        float(nats.mean()), tokens=len(nats), characters=len(text) - len(first)
    )
    say(f"{len(text):,} characters, {len(tokens):,} tokens, the first one given")
    say(f"log-probability {-nats.sum():.3f} nats, perplexity {math.exp(nats.mean()):.4f} a token")
    say(f"{bits:.4f} bits a character")
    for at in np.argsort(-nats, kind="stable")[: options.worst]:
        before = writer.tokenizer.decode(tokens[max(0, at - 20) : at + 1])[-30:]
        token = writer.tokenizer.decode(tokens[at + 1 : at + 2])
        say(f"{math.exp(-nats[at]):10.2e}  {token!r} after {before!r}")


def surprises(
    writer: Writer, tokens: Int[np.ndarray, " t"], *, size: int = 512
) -> Iterator[Float[np.ndarray, " _"]]:
    """Yields the negative log-probability, in nats, of each token but the first, by stretches.

    The carry passes from stretch to stretch: each token is predicted from all before it, or from
    as many as the model sees, at least half of its limit.
    """
    if writer.model.limit:
        size = min(size, max(1, writer.model.limit // 2))
    carry = writer.model.initial_carry(1)
    for at in range(0, len(tokens) - 1, size):
        stretch = tokens[at : at + size + 1]
        padded = np.zeros((1, size + 1), np.int32)
        padded[0, : len(stretch)] = stretch
        carry, nats = _surprise(writer.model, writer.params, carry, jnp.asarray(padded))
        yield np.asarray(nats)[: len(stretch) - 1]


_read = jax.jit(lambda read, carry, tokens, lengths: read(carry, tokens, lengths))


@functools.partial(jax.jit, static_argnames="model")
def _surprise(model: LanguageModel, params: Params, carry: PyTree, tokens: Array):
    carry, logits = model.extend(params, carry, tokens[:, :-1])
    return carry, softmax_cross_entropy(logits, tokens[:, 1:])[0]
