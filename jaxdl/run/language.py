"""What a language model is trained on and judged by: the options, and the corpus of one text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdl.data.bpe import BPETokenizer
from jaxdl.data.codec import Tokenizer
from jaxdl.data.pipeline import Pipeline
from jaxdl.data.text import TextDataset, stdlib_source, text_file, tfds_text
from jaxdl.data.text_baselines import gzip_bits, markov_bits
from jaxdl.data.text_pipeline import Streams, Windows
from jaxdl.data.tokenizers import ByteTokenizer, CharTokenizer, WordTokenizer
from jaxdl.errors import UserError
from jaxdl.metrics import Mean, Metrics
from jaxdl.run.config import RunConfig, operational
from jaxdl.run.progress import say
from jaxdl.run.writing import Writer, write_sample
from jaxdl.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageConfig(RunConfig):
    """Options of every experiment on the language of one text."""

    corpus: str = "stdlib"
    """stdlib (the source of Python's own library), file, questions (sums, differences, days near
    others), or a TFDS dataset: tiny_shakespeare."""
    file: Path | None = None
    """For the corpus "file", a text in UTF-8, whose last tenth is held out. For "questions", your
    own, {"prompt": TEXT, "answer": TEXT} a line."""
    validation_file: Path | None = None
    """Hold this text out instead, and train on the whole of --file."""
    data_dir: Path | None = operational(None)
    """Where TFDS keeps prepared datasets [default: ~/tensorflow_datasets]."""
    manual_dir: Path | None = operational(None)
    """Pre-downloaded files for TFDS, which checks them against its own checksums."""

    tokenizer: Literal["byte", "char", "word", "bpe"] = "char"
    """What a token is; the last three are trained on the training text."""
    vocabulary: int = 2048
    """Tokens of words or BPE."""
    feed: Literal["windows", "streams"] = "windows"
    """Windows from all over the text, or streams, whose carry passes from batch to batch."""
    eval_batch_size: int = 256
    """Windows a batch in evaluation, which changes no number; or streams, which changes where each
    begins, and so what its first tokens are predicted from."""
    length: int = 128
    """Tokens a window, or of each stream in a batch."""
    context: int = 32
    """Tokens that evaluation reads before those that count, of a window or a stream."""
    prompt: str = operational("\n")
    """What the samples begin with that are written at every evaluation."""
    sample: int = operational(400)
    """Tokens of such a sample."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        super().__post_init__()
        self._require(self.length > 0, "length", "must be above 0")
        self._require(self.sample > 0, "sample", "must be above 0")
        reads = self.file is None or self.corpus in ("file", "questions")
        self._require(reads, "file", "needs --corpus file, or questions, beside it")
        reads = self.validation_file is None or self.corpus == "file"
        self._require(reads, "validation_file", "needs --corpus file beside it")
        if self.corpus != "questions":
            most = self.length if self.feed == "windows" else math.inf
            self._require(0 <= self.context < most, "context", "must lie in [0, length)")
        if self.tokenizer in ("word", "bpe"):
            self._require(self.vocabulary > 256, "vocabulary", "must be above 256")
        if self.corpus == "questions":
            self._require(self.tokenizer == "bpe", "tokenizer", "must be bpe for questions")
            self._require(self.vocabulary > 258, "vocabulary", "must be above 258 for questions")


class Corpus(NamedTuple):
    """What a language model is trained on, and how it is judged."""

    name: str
    tokenizer: Tokenizer
    train: Pipeline
    test: Pipeline
    tokens: int  # that an example trains on
    metric: str  # the least of it names the best checkpoint
    # (losses [b t], logits [b t v], batch) -> metrics, "loss" among them
    measure: Callable[[Array, Array, Batch], Metrics]
    sample: Callable[[Writer], str]  # what shows, at every evaluation, how far the model is
    report: Callable[[Writer], dict[str, Any]]  # further numbers and sections, when it is trained
    held_out: str  # a beginning of what is held out, for the figures


def text_corpus(config: LanguageConfig) -> Corpus:
    """Opens the config's text; a model of it is judged by bits a character."""
    data = load_text(config)
    tokenizer = make_tokenizer(config, data.train)
    train, test = make_pipelines(config, tokenizer, data)
    characters = characters_of(tokenizer)
    return Corpus(
        name=data.name,
        tokenizer=tokenizer,
        train=train,
        test=test,
        tokens=config.length,
        metric="bits_per_char",
        measure=lambda losses, logits, batch: language_metrics(losses, batch, characters),
        sample=lambda writer: write_sample(writer, config.prompt, tokens=config.sample),
        report=lambda writer: {"baselines": report_baselines(data)},
        held_out=data.test[:2000],
    )


def load_text(config: LanguageConfig) -> TextDataset:
    """Opens the config's corpus."""
    if config.corpus == "stdlib":
        return stdlib_source()
    if config.corpus == "file":
        if config.file is None:
            raise UserError("--corpus file needs --file PATH, a text in UTF-8")
        return text_file(config.file, config.validation_file)
    return tfds_text(config.corpus, data_dir=config.data_dir, manual_dir=config.manual_dir)


def make_tokenizer(config: LanguageConfig, text: str) -> Tokenizer:
    """Makes the config's tokeniser, trained on `text`."""
    if config.tokenizer == "byte":
        return ByteTokenizer()
    if config.tokenizer == "char":
        return CharTokenizer.train(text)
    kind = {"word": WordTokenizer, "bpe": BPETokenizer}[config.tokenizer]
    return kind.train(text, size=config.vocabulary)


def make_pipelines(
    config: LanguageConfig, tokenizer: Tokenizer, data: TextDataset
) -> tuple[Pipeline, Pipeline]:
    """Makes the two pipelines: one to train on, and one that covers the held-out text."""
    feed = {"windows": Windows, "streams": Streams}[config.feed]
    train = feed(
        tokenizer.encode(data.train), config.batch_size, length=config.length, seed=config.seed
    )
    test = feed(
        tokenizer.encode(data.test), config.eval_batch_size, length=config.length, seed=None,
        context=config.context,
    )  # fmt: skip
    return train, test


def characters_of(tokenizer: Tokenizer) -> Float[np.ndarray, " v"]:
    """Counts the characters of each token: of its UTF-8, the bytes that begin one."""
    texts = (tokenizer.to_bytes([token]) for token in range(tokenizer.size))
    return np.array([sum(byte & 0xC0 != 0x80 for byte in text) for text in texts], np.float32)


def language_metrics(
    losses: Float[Array, "b t"], batch: Batch, characters: Float[np.ndarray, " v"]
) -> Metrics:
    """Makes "loss", in nats a token, and "bits_per_char", which no tokeniser can flatter."""
    mask = batch.get("mask")
    loss = Mean.of(losses, mask)
    count = Mean.of(jnp.asarray(characters)[batch["targets"]], mask).total
    return {"loss": loss, "bits_per_char": Mean(loss.total / math.log(2), count)}


def report_baselines(data: TextDataset) -> dict[str, float]:
    """Computes and prints what the network is to beat: gzip, and counts of four characters."""
    baselines = {"gzip": gzip_bits(data.test), "order_4": markov_bits(data.train, data.test)}
    say(
        f"{'baselines':<10}held-out bits a character: gzip {baselines['gzip']:.3f}, a character"
        f" model of order 4 {baselines['order_4']:.3f}"
    )
    return baselines
