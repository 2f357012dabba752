"""Translation: a transformer that reads a sentence in one language and writes it in another.

python -m experiments.translation              # dates in 27 languages -> ISO: 99.5% in 5 minutes
python -m experiments.translation multi30k-de-en --manual-dir FOLDER
python -m experiments.translation files --source A.de --target A.en --workdir runs/mine
python -m experiments.translation translate --workdir RUN --beam 4 "jeudi 4 mars 2021"
python -m experiments.translation average --workdir RUN --last 3
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxdl.data.pair_pipeline import joint_bpe
from jaxdl.keys import derive
from jaxdl.losses import softmax_cross_entropy
from jaxdl.metrics import Mean, correct
from jaxdl.models import EncoderDecoder
from jaxdl.models.apply import apply, initialise
from jaxdl.run import averaging
from jaxdl.run.cli import Script
from jaxdl.run.experiment import Experiment
from jaxdl.run.hosts import gathered
from jaxdl.run.translation import Interpreter, PairConfig, load_pairs, make_rows, translate
from jaxdl.run.translation_report import (
    draw_attention,
    report_translations,
    write_translations,
)
from jaxdl.run.workdir import Workdir
from jaxdl.train import Aux, TrainState
from jaxdl.train.rules import TRANSFORMER
from jaxdl.train.sharding import Placement
from jaxdl.types import Key

SHOWN = 12  # validation pairs that are translated at every evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PairConfig):
    """Options of translation."""

    width: int = 128
    """Width of the model."""
    hidden: int | None = None
    """Hidden units of each MLP [default: four times the width]."""
    layers: int = 2
    """Layers of the encoder, and as many of the decoder."""
    heads: int = 4
    """Heads of every attention."""
    dropout: float = 0.1
    """Probability of dropping a unit of the embeddings and of each block's output."""
    label_smoothing: float = 0.1
    """Share of each target that is spread over the vocabulary, in training."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        super().__post_init__()
        for name in ("width", "layers", "heads"):
            self._require(getattr(self, name) > 0, name, "must be above 0")
        if self.hidden is not None:
            self._require(self.hidden > 0, "hidden", "must be above 0")
        for name in ("dropout", "label_smoothing"):
            self._require(0 <= getattr(self, name) < 1, name, "must lie in [0, 1)")
        what = f"must be a multiple of 2 x --heads, {2 * self.heads}"
        self._require(self.width % (2 * self.heads) == 0, "width", what)


DATES = Config(
    epochs=4, batch_size=32, eval_batch_size=64, optimizer="adamw", weight_decay=0.01,
    learning_rate=3e-3, schedule="cosine", warmup=100, clip_norm=1.0, ema_decay=0.99, dropout=0.0,
    keep=5,
)  # fmt: skip
DE_EN = dataclasses.replace(
    DATES, pairs="multi30k-de-en", lowercase=True, vocabulary=8000, width=256, layers=3, heads=8,
    dropout=0.2, length=128, batch_size=16, epochs=12, learning_rate=1.5e-3, warmup=400,
    ema_decay=0.998, beam=5,
)  # fmt: skip

PRESETS = {
    "dates": DATES,
    "multi30k-de-en": DE_EN,
    # 4 + 4 layers of 128 and 10,000 tokens, as Transformer-Tiny (Wu et al. 2021, ACL), whose MLPs
    # are half as wide: --hidden 256. 10,450 steps, evaluated 19 times.
    "multi30k-en-de": dataclasses.replace(
        DE_EN, pairs="multi30k-en-de", vocabulary=10_000, width=128, layers=4, heads=4, dropout=0.3,
        batch_size=32, epochs=95.679, learning_rate=5e-3, eval_every=550,
    ),
    "files": dataclasses.replace(DE_EN, pairs="files", lowercase=False),
}  # fmt: skip


def make_model(config: Config, vocabulary: int) -> EncoderDecoder:
    """Makes the config's network."""
    return EncoderDecoder(
        vocabulary, width=config.width, hidden=config.hidden, layers=config.layers,
        heads=config.heads, dropout=config.dropout, dtype=config.dtype,
    )  # fmt: skip


def build(config: Config) -> Experiment:
    """Puts the experiment together."""
    data = load_pairs(config)
    tokenizer = joint_bpe(data.train, size=config.vocabulary)
    model = make_model(config, tokenizer.size)
    train, test = make_rows(config, tokenizer, data)

    def init(key: Key):
        return initialise(model, key, *[jnp.ones((1, 8), jnp.int32)] * 2)

    def loss(params, model_state, batch, key, *, train):
        rngs = {"dropout": derive(key, "dropout")} if train else None
        names = ("source", "tokens", "source_segments", "segments")
        inputs = [batch[name] for name in names]
        logits, model_state = apply(model, params, model_state, *inputs, train=train, rngs=rngs)
        targets, mask = batch["targets"], batch["mask"]
        smoothing = config.label_smoothing if train else 0.0
        losses = softmax_cross_entropy(logits, targets, label_smoothing=smoothing)
        mean, accuracy = Mean.of(losses, mask), Mean.of(correct(logits, targets), mask)
        return mean, Aux({"loss": mean, "accuracy": accuracy}, model_state)

    def interpreter(state: TrainState) -> Interpreter:
        return Interpreter(model, gathered(state.weights), tokenizer, config.lowercase)

    def observe(state: TrainState, workdir: Workdir) -> None:
        shown = data.validation[:SHOWN]
        translations = interpreter(state).translate([pair.source for pair in shown])
        lines = (f"{p.source}\n  {p.target}\n  {t}\n" for p, t in zip(shown, translations,
                                                                    strict=True))  # fmt: skip
        workdir.samples.mkdir(exist_ok=True)
        (workdir.samples / f"{int(state.step)}.txt").write_text("".join(lines), encoding="utf-8")

    def finish(state: TrainState, workdir: Workdir, placement: Placement) -> dict[str, Any]:
        trained = interpreter(state)
        sources = [pair.source for pair in data.test]
        translations = trained.translate(sources, beam=config.beam, alpha=config.alpha)
        shown = [p._replace(target=t) for p, t in zip(data.test, translations, strict=True)]
        latin = [pair for pair in shown if max(pair.source) < "\u2e80"]  # what the font has
        draw_attention(trained, latin[:4] or shown[:4], workdir.figures / "attention.png")
        workdir.model.mkdir(exist_ok=True)
        tokenizer.save(workdir.model)
        write_translations(data.test, translations, workdir.samples)
        return report_translations(data.test, translations, lowercase=config.lowercase)

    return Experiment(
        dataset=data.name,
        model=model,
        about={"lowercase": config.lowercase},
        init=init,
        loss=loss,
        train=train,
        test=test,
        metric=("loss", "min"),
        unit="tokens",
        # Of both sides, but for the places that packing left empty.
        units_per_example=round(sum(
            n * train.filled[side] for n, side in zip(train.lengths, ("source", "tokens"),
                                                      strict=True))),
        rules=TRANSFORMER,
        observe=observe,
        finish=finish,
    )  # fmt: skip


def average(options: averaging.AverageConfig) -> None:
    """Averages the checkpoints of a run's last evaluations."""
    averaging.average(SCRIPT, options)


SCRIPT = Script(
    name="translation",
    presets=PRESETS,
    build=build,
    verbs={"translate": translate, "average": average},
)

if __name__ == "__main__":
    SCRIPT.main()
