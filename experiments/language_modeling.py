"""Language modelling: a network that learns to write, or to answer, piece by piece.

python -m experiments.language_modeling    # 4 minutes: Python's own source, 1.86 bits a character
python -m experiments.language_modeling stdlib-gpt
python -m experiments.language_modeling shakespeare-lstm --manual-dir PATH
python -m experiments.language_modeling questions            # sums and days, or --file FILE.jsonl
python -m experiments.language_modeling generate --workdir RUN --prompt "def " --temperature 0.7
python -m experiments.language_modeling score --workdir RUN --file X.py
python -m experiments.language_modeling answer --workdir RUN "What is 17 + 25?"
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from jaxdl.keys import derive
from jaxdl.layers.recurrent import CellName
from jaxdl.losses import softmax_cross_entropy
from jaxdl.models import RecurrentLM, TransformerLM
from jaxdl.models.apply import apply, initialise
from jaxdl.rows import restart
from jaxdl.run.activations import draw_held_out
from jaxdl.run.answering import answer_texts, question_corpus
from jaxdl.run.attention_maps import draw_self_attention
from jaxdl.run.cli import Script
from jaxdl.run.experiment import Experiment
from jaxdl.run.hosts import gathered
from jaxdl.run.language import LanguageConfig, text_corpus
from jaxdl.run.progress import say
from jaxdl.run.workdir import Workdir
from jaxdl.run.writing import Writer, score, write_on
from jaxdl.train import Aux, TrainState
from jaxdl.train.rules import TRANSFORMER
from jaxdl.train.sharding import Placement
from jaxdl.types import Key

CELLS: dict[str, CellName] = {"lstm": "lstm", "gru": "gru", "rnn": "tanh"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LanguageConfig):
    """Options of language modelling."""

    network: Literal["lstm", "gru", "rnn", "gpt2", "modern"] = "lstm"
    """LSTM, GRU, or a simple RNN with tanh; or a transformer: GPT-2's, or one of today's parts."""
    width: int = 512
    """Units of a layer, and of the embedding."""
    layers: int = 1
    """Layers on top of each other."""
    dropout: float = 0.0
    """Probability of dropping a unit of the embedding and between layers; in a transformer, of what
    each part of a block adds and of the weights of attention too."""
    tied: bool = False
    """Read the output with the embedding's own weights; a transformer always does."""
    heads: int = 4
    """Heads of attention, in a transformer."""
    kv_heads: int | None = None
    """Heads of keys and values in a transformer, a divisor of --heads [default: as many]."""
    scan_layers: bool = False
    """Compile one layer for all of a transformer's, which is faster. It is the same function of the
    same parameters; from one seed these start otherwise, and dropout draws otherwise."""
    remat: bool = False
    """Keep each transformer layer's input alone and compute the rest again: less memory."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        super().__post_init__()
        for name in ("width", "layers", "heads"):
            self._require(getattr(self, name) > 0, name, "must be above 0")
        self._require(0 <= self.dropout < 1, "dropout", "must lie in [0, 1)")
        if self.kv_heads is not None:
            shared = self.kv_heads > 0 and self.heads % self.kv_heads == 0
            self._require(shared, "kv_heads", f"must be above 0 and divide --heads, {self.heads}")
        if self.network not in CELLS:
            self._require(self.feed == "windows", "feed", "must be windows for a transformer")
        if self.corpus == "questions":
            fits = self.network not in CELLS
            self._require(fits, "network", "must be a transformer, gpt2 or modern, for questions")


STDLIB = Config(
    tokenizer="bpe", width=256, epochs=2.2, batch_size=32, optimizer="adamw", weight_decay=0.01,
    learning_rate=4e-3, schedule="cosine", warmup=50, clip_norm=1.0, prompt="def ",
)  # fmt: skip
SHAKESPEARE = dataclasses.replace(
    STDLIB, corpus="tiny_shakespeare", tokenizer="char", feed="streams", context=256, width=512,
    layers=2, dropout=0.35, epochs=12, batch_size=32, eval_batch_size=32, ema_decay=0.99,
    learning_rate=3e-3, weight_decay=0.02, warmup=100, prompt="\nROMEO:\n",
)  # fmt: skip
GPT_CPU = dataclasses.replace(
    SHAKESPEARE, network="modern", feed="windows", length=64, context=0, width=128, layers=4,
    dropout=0.0, epochs=1.53, batch_size=12, eval_batch_size=64, eval_every=500,
)  # fmt: skip

PRESETS = {
    "stdlib-lstm": STDLIB,
    "stdlib-gru": dataclasses.replace(STDLIB, network="gru"),
    "stdlib-gpt": dataclasses.replace(STDLIB, network="modern", layers=4, learning_rate=3e-3),
    "shakespeare-lstm": SHAKESPEARE,
    "shakespeare-gru": dataclasses.replace(SHAKESPEARE, network="gru"),
    "shakespeare-rnn": dataclasses.replace(SHAKESPEARE, network="rnn", learning_rate=5e-4),
    # nanoGPT's budget for a CPU, 2,000 steps of 12 x 64 characters, by both kinds of transformer.
    "shakespeare-gpt-cpu": GPT_CPU,
    "shakespeare-gpt2-cpu": dataclasses.replace(GPT_CPU, network="gpt2"),
    # nanoGPT's setting for a GPU: 5,000 steps of 64 x 256 characters.
    "shakespeare-gpt": dataclasses.replace(
        GPT_CPU, length=256, width=384, layers=6, heads=6, dropout=0.2, epochs=81.63, batch_size=64,
        learning_rate=1e-3, weight_decay=0.1, precision="bf16", eval_every=250,
    ),
    "questions": dataclasses.replace(
        STDLIB, corpus="questions", network="modern", vocabulary=260, length=128, width=128,
        layers=4, epochs=5, batch_size=16, learning_rate=3e-3, ema_decay=0.99,
    ),
}  # fmt: skip


def make_model(config: Config, vocabulary: int) -> RecurrentLM | TransformerLM:
    """Makes the config's network."""
    shared: dict[str, Any] = {
        "width": config.width, "layers": config.layers, "dropout": config.dropout,
        "dtype": config.dtype,
    }  # fmt: skip
    if config.network in CELLS:
        cell = CELLS[config.network]
        return RecurrentLM(vocabulary, cell=cell, tied=config.tied, **shared)
    return TransformerLM(
        vocabulary, heads=config.heads, kv_heads=config.kv_heads, limit=config.length,
        style="gpt2" if config.network == "gpt2" else "modern", scan=config.scan_layers,
        remat=config.remat, **shared,
    )  # fmt: skip


def build(config: Config) -> Experiment:
    """Puts the experiment together."""
    corpus = (question_corpus if config.corpus == "questions" else text_corpus)(config)
    model = make_model(config, corpus.tokenizer.size)
    streams = config.feed == "streams"

    def init(key: Key):
        return initialise(model, key, jnp.zeros((1, config.length), jnp.int32))

    def loss(params, model_state, batch, key, *, train):
        rngs = {"dropout": derive(key, "dropout")} if train else None
        carry = restart(batch["carry"], batch["reset"]) if streams else None
        inputs = [batch["tokens"], carry]
        if "segments" in batch:
            inputs.append(batch["segments"])
        (logits, carry), model_state = apply(
            model, params, model_state, *inputs, train=train, rngs=rngs
        )
        losses = softmax_cross_entropy(logits, batch["targets"])
        metrics = corpus.measure(losses, logits, batch)
        return metrics["loss"], Aux(metrics, model_state, carry if streams else None)

    def writer(state: TrainState) -> Writer:
        return Writer(model, gathered(state.weights), corpus.tokenizer)

    def sample(state: TrainState, workdir: Workdir) -> None:
        workdir.samples.mkdir(exist_ok=True)
        path = workdir.samples / f"{int(state.step)}.txt"
        path.write_text(corpus.sample(writer(state)), encoding="utf-8")

    def finish(state: TrainState, workdir: Workdir, placement: Placement) -> dict[str, Any]:
        trained = writer(state)
        workdir.model.mkdir(exist_ok=True)
        corpus.tokenizer.save(workdir.model)
        shown = trained.params, corpus.tokenizer, corpus.held_out
        if isinstance(model, TransformerLM):
            draw_self_attention(model, *shown, workdir.figures / "attention.png")
        else:
            draw_held_out(model, *shown, workdir.figures / "activations.png")
        last = workdir.samples / f"{int(state.step)}.txt"
        if last.exists():
            say(f"\n{last.read_text(encoding='utf-8')}\n")
        return corpus.report(trained)

    return Experiment(
        dataset=corpus.name,
        model=model,
        about={"input_shape": [config.length], "input_dtype": "int32"},
        init=init,
        loss=loss,
        train=corpus.train,
        test=corpus.test,
        metric=(corpus.metric, "min"),
        unit="tokens",
        units_per_example=corpus.tokens,
        rules=() if config.network in CELLS else TRANSFORMER,
        carry=model.initial_carry if streams else None,
        observe=sample,
        finish=finish,
    )


SCRIPT = Script(
    name="language_modeling",
    presets=PRESETS,
    build=build,
    verbs={"generate": write_on, "score": score, "answer": answer_texts},
)

if __name__ == "__main__":
    SCRIPT.main()
