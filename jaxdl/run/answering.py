"""Questions and answers for a language model: what it learns from, and how often it is right."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tyro
from jaxtyping import Array, Int

from jaxdl.data.bpe import BPETokenizer
from jaxdl.data.pair_pipeline import END, encode_pairs, joint_bpe
from jaxdl.data.pairs import Pair
from jaxdl.data.questions import (
    PackedQuestions,
    fitting_questions,
    question_file,
    question_prompt,
    questions,
)
from jaxdl.decode import in_batches
from jaxdl.errors import UserError
from jaxdl.metrics import Mean, Metrics, correct
from jaxdl.run.cli import VerbConfig
from jaxdl.run.language import Corpus, LanguageConfig
from jaxdl.run.progress import say
from jaxdl.run.writing import Writer, load_writer
from jaxdl.sampling import greedy
from jaxdl.types import Batch

SHOWN = 12  # validation questions that are answered at every evaluation


def question_corpus(config: LanguageConfig) -> Corpus:
    """Opens the questions; a model of them is judged by the loss on answers, then by exact match.

    Raises UserError where a question that is tested on has no place in a row of `--length`.
    """
    data = questions() if config.file is None else question_file(config.file)
    tokenizer = joint_bpe(data.train, size=config.vocabulary)
    encoded = encode_pairs(data.train, tokenizer)
    kept = fitting_questions(encoded, config.length)
    if left := len(encoded.sources) - len(kept.sources):
        say(f"{'data':<10}{left:,} questions with their answers are longer than a row: left out")
    if not kept.sources:
        raise UserError(f"no question with its answer fits --length {config.length}")
    shared = {"length": config.length, "specials": tokenizer.specials}
    train = PackedQuestions(kept, config.batch_size, seed=config.seed, **shared)
    held_out = encode_pairs(data.test, tokenizer)
    test = PackedQuestions(held_out, config.eval_batch_size, seed=None, **shared)
    fits = lambda pair: len(_prompt(tokenizer, pair.source)) <= config.length  # noqa: E731
    shown = list(filter(fits, data.validation))[:SHOWN]

    def sample(writer: Writer) -> str:
        answers = answer(writer, [pair.source for pair in shown])
        both = zip(shown, answers, strict=True)
        return "".join(f"{pair.source}\n  {pair.target}\n  {given}\n" for pair, given in both)

    return Corpus(
        name=data.name,
        tokenizer=tokenizer,
        train=train,
        test=test,
        tokens=round(config.length * train.filled),
        metric="loss",
        measure=answer_metrics,
        sample=sample,
        report=lambda writer: report_answers(
            data.test, answer(writer, [pair.source for pair in data.test])
        ),
        held_out=" ".join(pair.source for pair in data.test[:8]),
    )


def answer_metrics(losses: Array, logits: Array, batch: Batch) -> Metrics:
    """Makes "loss", in nats a token of answers, and "accuracy", the share of those tokens."""
    targets, mask = batch["targets"], batch["mask"]
    return {"loss": Mean.of(losses, mask), "accuracy": Mean.of(correct(logits, targets), mask)}


def answer(writer: Writer, texts: Sequence[str], *, batch_size: int = 128) -> list[str]:
    """Answers each question by the most probable token, and the next, up to the end.

    An answer has the tokens that a row of the training leaves it. Raises UserError for a question
    that leaves none.
    """
    tokenizer, most = writer.tokenizer, writer.model.limit
    if not isinstance(tokenizer, BPETokenizer) or END not in tokenizer.specials or most is None:
        raise UserError("this model was not trained on questions and answers")
    prompts = [_prompt(tokenizer, text) for text in texts]
    if (longest := max(map(len, prompts), default=0)) > most:
        raise UserError(f"a question of {longest} tokens is too long: the model sees {most}")
    stop = (tokenizer.specials[END],)

    def write(tokens: Array, lengths: Array) -> Array:
        return writer.write(tokens, lengths, sampler=greedy, limit=most, stop=stop).tokens

    rows = in_batches(prompts, write, batch_size=batch_size)
    # The last token of a row is predicted and not read: it has a place more.
    return [
        tokenizer.decode(row[: most + 1 - len(prompt)])
        for row, prompt in zip(rows, prompts, strict=True)
    ]


def _prompt(tokenizer: BPETokenizer, text: str) -> Int[np.ndarray, " _"]:
    return question_prompt(tokenizer.encode(text), tokenizer.specials)


def report_answers(
    pairs: Sequence[Pair], answers: Sequence[str], *, wrong: int = 5
) -> dict[str, Any]:
    """Counts the answers that are right, character by character, and shows wrong ones."""
    missed = [(p, a) for p, a in zip(pairs, answers, strict=True) if a != p.target]
    for pair, given in missed[:wrong]:
        say(f"  {pair.source}  {pair.target}  is wanted, not  {given}")
    say(f"{len(missed):,} of {len(pairs):,} answers are wrong")
    return {
        "test": {"exact_match": 1 - len(missed) / len(pairs)},
        "wrong": [
            {"question": pair.source, "answer": pair.target, "given": given}
            for pair, given in missed[:wrong]
        ],
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerConfig(VerbConfig):
    """Options of `answer`."""

    texts: tyro.conf.Positional[tuple[str, ...]]
    """Questions, each in quotes."""


def answer_texts(options: AnswerConfig) -> None:
    """Prints the answer to each question, a line each."""
    if not options.texts or not all(text.strip() for text in options.texts):
        raise UserError("answer needs a question in quotes, or several")
    for text in answer(load_writer(options.workdir), options.texts):
        print(text)
