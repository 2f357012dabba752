"""What translations are reported with: BLEU, exact matches, the worst, and where was looked."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdl.data.pair_pipeline import BEGIN, END
from jaxdl.data.pairs import Pair
from jaxdl.models import EncoderDecoder
from jaxdl.run.attention_maps import draw_map, save
from jaxdl.run.progress import say
from jaxdl.run.report import new_figure
from jaxdl.run.translation import Interpreter
from jaxdl.types import Params


def report_translations(
    pairs: Sequence[Pair], translations: Sequence[str], *, lowercase: bool, worst: int = 5
) -> dict[str, Any]:
    """Scores translations, prints the worst, and returns all of it for the report.

    `bleu` is that of a corpus, in percent (Papineni et al. 2002), as sacreBLEU computes it (Post
    2018, arXiv:1804.08771) with the signature returned beside it; `exact_match` is the share of
    translations that are the reference, character by character. The worst are those of the lowest
    BLEU of their own, smoothed, that do not match.
    """
    from sacrebleu.metrics.bleu import BLEU

    references = [pair.target for pair in pairs]
    metric = BLEU(lowercase=lowercase)
    bleu = metric.corpus_score(list(translations), [references]).score
    exact = float(np.mean([a == b for a, b in zip(translations, references, strict=True)]))
    single = BLEU(lowercase=lowercase, effective_order=True)
    wrong = [
        (single.sentence_score(translation, [pair.target]).score, pair, translation)
        for pair, translation in zip(pairs, translations, strict=True)
        if translation != pair.target
    ]
    wrong.sort(key=lambda entry: entry[0])
    for score, pair, translation in wrong[:worst]:
        say(f"{score:6.1f}  {pair.source}\n        {pair.target}  is wanted\n        {translation}")
    say(f"{len(wrong):,} of {len(references):,} differ from their reference")
    signature = str(metric.get_signature())
    say(f"{'bleu':<10}{bleu:.2f} ({signature})")
    return {
        "test": {"bleu": bleu, "exact_match": exact},
        "sacrebleu": signature,
        "worst": [
            {"source": pair.source, "target": pair.target, "translation": translation}
            for _, pair, translation in wrong[:worst]
        ],
    }


def write_translations(pairs: Sequence[Pair], translations: Sequence[str], folder: Path) -> None:
    """Writes sources, references and translations, line-aligned, a file each, for any metric."""
    columns = {
        "sources": [pair.source for pair in pairs],
        "references": [pair.target for pair in pairs],
        "translations": translations,
    }
    folder.mkdir(exist_ok=True)
    for name, texts in columns.items():
        lines = (" ".join(text.splitlines()) + "\n" for text in texts)
        (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")


def attention_map(
    interpreter: Interpreter, source: str, target: str
) -> tuple[list[str], list[str], Float[np.ndarray, "t s"]]:
    """Returns the pieces of a source and of its translation, and where was looked for each piece.

    The weights are those of the last layer's attention to the source, the mean of its heads; row t
    is for predicting piece t, so that all rows sum to 1.
    """
    model, params, tokenizer, _ = interpreter
    begin, end = tokenizer.specials[BEGIN], tokenizer.specials[END]
    heard, said = (tokenizer.encode(text).tolist() for text in (source, target))
    padded = (np.pad(side, (0, -len(side) % 32)) for side in ([*heard, end], [begin, *said]))
    weights = np.asarray(_weights(model, params, *padded))
    pieces = [[*(tokenizer.decode([token]) for token in side), END] for side in (heard, said)]
    return pieces[0], pieces[1], weights[: len(said) + 1, : len(heard) + 1]


@functools.partial(jax.jit, static_argnames="model")
def _weights(
    model: EncoderDecoder, params: Params, source: Int[Array, " s"], target: Int[Array, " t"]
) -> Float[Array, "t s"]:
    inputs = source[None], target[None]
    sown: Any = model.apply({"params": params}, *inputs, train=False, mutable=["intermediates"])[1]
    found = sown["intermediates"]["decoder"]
    if model.scan:
        (weights,) = found["blocks"]["cross"]["weights"]  # [l b n t s]
        return weights[-1, 0].mean(0)
    (weights,) = found[f"blocks_{model.layers - 1}"]["cross"]["weights"]
    return weights[0].mean(0)


def draw_attention(interpreter: Interpreter, pairs: Sequence[Pair], path: Path) -> None:
    """Draws, for each source and its translation, where the last layer looked."""
    figure, axes = new_figure(4.2 * len(pairs), 4.2, ncols=len(pairs), squeeze=False)
    for axis, (source, target) in zip(axes[0], pairs, strict=True):
        heard, said, weights = attention_map(interpreter, source, target)
        draw_map(axis, said, heard, weights)
    figure.suptitle("attention to the source, last layer, mean of heads (row: piece to write)",
                    fontsize=9)  # fmt: skip
    save(figure, path)
