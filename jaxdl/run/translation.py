"""What every experiment on sentence pairs shares: its options, its data, and its interpreter."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Int

from jaxdl.backend import CompilationCache
from jaxdl.beam import ALPHA, beam_search
from jaxdl.data.bpe import BPETokenizer
from jaxdl.data.pair_pipeline import (
    BEGIN,
    END,
    PackedPairs,
    encode_pairs,
    fitting,
    longest,
    row_lengths,
)
from jaxdl.data.pairs import PairDataset, dates, multi30k, pair_files
from jaxdl.data.tokenizers import load_tokenizer
from jaxdl.decode import generate, in_batches, row_keys
from jaxdl.errors import UserError
from jaxdl.interop.safetensors import load_model
from jaxdl.run.cli import VerbConfig
from jaxdl.run.config import RunConfig, operational
from jaxdl.run.progress import say
from jaxdl.run.workdir import Workdir
from jaxdl.sampling import greedy
from jaxdl.types import Params

# Tokens that a translation may have more than its source, its end counted, as in Vaswani et al.
# 2017, section 6.1.
ROOM = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairConfig(RunConfig):
    """Options of every experiment on sentence pairs."""

    pairs: Literal["dates", "multi30k-de-en", "multi30k-en-de", "files"] = "dates"
    """dates (in 27 languages, to ISO), Multi30k, or your own files."""
    source: Path | None = None
    """For the pairs "files": sentences in UTF-8, one a line."""
    target: Path | None = None
    """For the pairs "files": their translations, line by line."""
    data_dir: Path | None = operational(None)
    """Where TFDS keeps prepared datasets [default: ~/tensorflow_datasets]."""
    manual_dir: Path | None = operational(None)
    """Pre-downloaded files for TFDS, which checks them against checksums."""

    lowercase: bool = False
    """Turn both sides to lower case."""
    vocabulary: int = 384
    """Tokens of the byte-pair encoding that both sides share."""
    length: int = 64
    """Places of a row, of the longer side; several pairs are packed into it."""
    beam: int = 1
    """Beams of the final translations; 1 is greedy."""
    alpha: float = operational(ALPHA)
    """Length penalty of those beams: 0 ranks them by log-probability, more favours long ones."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        super().__post_init__()
        for name in ("source", "target"):
            reads = getattr(self, name) is None or self.pairs == "files"
            self._require(reads, name, "needs --pairs files beside it")
        self._require(self.vocabulary > 259, "vocabulary", "must be above 259")
        self._require(self.length > 1, "length", "must be above 1")
        self._require(self.beam > 0, "beam", "must be above 0")
        self._require(0 <= self.alpha < math.inf, "alpha", "must be 0 or more, and finite")


def load_pairs(config: PairConfig) -> PairDataset:
    """Opens the config's pairs."""
    if config.pairs == "dates":
        data = dates()
    elif config.pairs == "files":
        if config.source is None or config.target is None:
            raise UserError("--pairs files needs --source FILE and --target FILE, line by line")
        data = pair_files(config.source, config.target)
    else:
        _, source, target = config.pairs.split("-")
        data = multi30k(source, target, data_dir=config.data_dir, manual_dir=config.manual_dir)
    return data.map(str.lower) if config.lowercase else data


def make_rows(
    config: PairConfig, tokenizer: BPETokenizer, data: PairDataset
) -> tuple[PackedPairs, PackedPairs]:
    """Packs the pairs to train on, but for those longer than a row, and all of those to test on."""
    encoded = encode_pairs(data.train, tokenizer)
    kept = fitting(encoded, config.length)
    if left := len(encoded.sources) - len(kept.sources):
        say(f"{'data':<10}{left:,} training pairs have {config.length} tokens or more: left out")
    if not kept.sources:
        raise UserError(f"no training pair fits --length {config.length}")
    test = encode_pairs(data.test, tokenizer)
    lengths = row_lengths(kept, config.length)
    s, t = map(max, lengths, longest(test))
    specials = tokenizer.specials
    return (
        PackedPairs(kept, config.batch_size, lengths=lengths, specials=specials, seed=config.seed),
        PackedPairs(test, config.eval_batch_size, lengths=(s, t), specials=specials, seed=None),
    )


class Interpreter(NamedTuple):
    """A trained translator and its tokeniser."""

    # An nn.Module with `carry(params, source, limit=)` and `step(params, carry, tokens)`.
    model: Any
    params: Params
    tokenizer: BPETokenizer
    lowercase: bool = False

    def translate(
        self, texts: Sequence[str], *, beam: int = 1, alpha: float = ALPHA, batch_size: int = 64
    ) -> list[str]:
        """Translates texts, those of like length together, none depending on another.

        Greedily, or by so many beams, see `jaxdl.beam`; by at most `ROOM` tokens more than a source
        has.
        """
        texts = [text.lower() for text in texts] if self.lowercase else texts
        begin, end = self.tokenizer.specials[BEGIN], self.tokenizer.specials[END]
        sources = [np.append(self.tokenizer.encode(text), np.int32(end)) for text in texts]
        write = functools.partial(
            _write, self.model, self.params, begin=begin, end=end, beam=beam, alpha=alpha
        )
        rows = in_batches(sources, write, batch_size=batch_size)
        return [self.tokenizer.decode(row) for row in rows]


@functools.partial(jax.jit, static_argnames=("model", "begin", "end", "beam", "alpha"))
def _write(
    model: Any,
    params: Params,
    source: Int[Array, "b s"],
    lengths: Int[Array, " b"],
    *,
    begin: int,
    end: int,
    beam: int,
    alpha: float,
) -> Int[Array, "b t"]:
    b, limit, limits = source.shape[0], source.shape[1] + ROOM, lengths + ROOM
    carry = model.carry(params, source, limit=limit)
    step, first = jax.tree_util.Partial(model.step, params), jnp.full(b, begin, jnp.int32)
    if beam > 1:
        options = {"beams": beam, "limit": limit, "stop": end, "alpha": alpha}
        return beam_search(step, carry, first, limits=limits, **options).tokens[:, 0]
    keys, one = row_keys(jax.random.key(0), b), jnp.ones(b, jnp.int32)  # greedy draws nothing
    drawn = generate(
        step, carry, first[:, None], one, keys, sampler=greedy, limit=limit, stop=(end,)
    )
    # What comes later changes nothing before it: a row's own limit can cut it afterwards.
    return jnp.where(jnp.arange(limit) < limits[:, None], drawn.tokens, 0)


def load_interpreter(workdir: Path) -> Interpreter:
    """Reads the translator that a run has exported; raises UserError where there is none."""
    CompilationCache()
    folder = Workdir(workdir).model
    model, params, _, about = load_model(folder)
    tokenizer = load_tokenizer(folder)
    if not isinstance(tokenizer, BPETokenizer) or "lowercase" not in about:
        raise UserError(f"{folder} holds no translator")
    return Interpreter(model, params, tokenizer, about["lowercase"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslateConfig(VerbConfig):
    """Options of `translate`."""

    texts: tyro.conf.Positional[tuple[str, ...]]
    """Sentences, each in quotes."""
    beam: int = 1
    """Beams to search with; 1 is greedy."""
    alpha: float = ALPHA
    """Length penalty of the search: 0 ranks by log-probability, more favours long translations."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        if self.beam < 1:
            raise UserError("--beam must be at least 1")
        if not 0 <= self.alpha < math.inf:
            raise UserError("--alpha must be 0 or more, and finite")


def translate(options: TranslateConfig) -> None:
    """Prints the translation of each text, a line each."""
    if not options.texts or not all(text.strip() for text in options.texts):
        raise UserError("translate needs a sentence in quotes, or several")
    interpreter = load_interpreter(options.workdir)
    for text in interpreter.translate(options.texts, beam=options.beam, alpha=options.alpha):
        print(text)
