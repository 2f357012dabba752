"""Language modelling: a recurrent network that learns to write, piece by piece.

python -m experiments.language_modeling    # 4 minutes: Python's own source, 1.86 bits a character
python -m experiments.language_modeling shakespeare-lstm --manual-dir PATH
python -m experiments.language_modeling generate --workdir RUN --prompt "def " --temperature 0.7
python -m experiments.language_modeling score --workdir RUN --file X.py
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxdl.keys import derive
from jaxdl.layers.recurrent import CellName
from jaxdl.losses import softmax_cross_entropy
from jaxdl.models import RecurrentLM
from jaxdl.models.apply import apply, initialise
from jaxdl.rows import restart
from jaxdl.run.activations import draw_activations, slow_units, unit_activations
from jaxdl.run.cli import Script
from jaxdl.run.config import operational
from jaxdl.run.experiment import Experiment
from jaxdl.run.hosts import gathered
from jaxdl.run.language import (
    LanguageConfig,
    characters_of,
    language_metrics,
    load_text,
    make_pipelines,
    make_tokenizer,
    report_baselines,
)
from jaxdl.run.progress import say
from jaxdl.run.workdir import Workdir
from jaxdl.run.writing import Writer, score, write_on, write_sample
from jaxdl.train import Aux, TrainState
from jaxdl.train.sharding import Placement
from jaxdl.types import Key

CELLS: dict[str, CellName] = {"lstm": "lstm", "gru": "gru", "rnn": "tanh"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LanguageConfig):
    """Options of language modelling."""

    network: Literal["lstm", "gru", "rnn"] = "lstm"
    """The recurrent cell: LSTM, GRU, or a simple RNN with tanh."""
    width: int = 512
    """Units of a layer, and of the embedding."""
    layers: int = 1
    """Layers on top of each other."""
    dropout: float = 0.0
    """Probability of dropping a unit of the embedding and between layers."""
    tied: bool = False
    """Read the output with the embedding's own weights."""
    prompt: str = operational("\n")
    """What the samples begin with that are written at every evaluation."""
    sample: int = operational(400)
    """Tokens of such a sample."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        super().__post_init__()
        for name in ("width", "layers", "sample"):
            self._require(getattr(self, name) > 0, name, "must be above 0")
        self._require(0 <= self.dropout < 1, "dropout", "must lie in [0, 1)")


STDLIB = Config(
    tokenizer="bpe", width=256, epochs=2.2, batch_size=32, optimizer="adamw", weight_decay=0.01,
    learning_rate=4e-3, schedule="cosine", warmup=50, clip_norm=1.0, prompt="def ",
)  # fmt: skip
SHAKESPEARE = dataclasses.replace(
    STDLIB, corpus="tiny_shakespeare", tokenizer="char", feed="streams", context=256, width=512,
    layers=2, dropout=0.35, epochs=12, batch_size=32, eval_batch_size=32, ema_decay=0.99,
    learning_rate=3e-3, weight_decay=0.02, warmup=100, prompt="\nROMEO:\n",
)  # fmt: skip

PRESETS = {
    "stdlib-lstm": STDLIB,
    "stdlib-gru": dataclasses.replace(STDLIB, network="gru"),
    "shakespeare-lstm": SHAKESPEARE,
    "shakespeare-gru": dataclasses.replace(SHAKESPEARE, network="gru"),
    "shakespeare-rnn": dataclasses.replace(SHAKESPEARE, network="rnn", learning_rate=5e-4),
}


def make_model(config: Config, vocabulary: int) -> RecurrentLM:
    """Makes the config's network."""
    return RecurrentLM(
        vocabulary=vocabulary, cell=CELLS[config.network], width=config.width, layers=config.layers,
        dropout=config.dropout, tied=config.tied, dtype=config.dtype,
    )  # fmt: skip


def build(config: Config) -> Experiment:
    """Puts the experiment together."""
    data = load_text(config)
    tokenizer = make_tokenizer(config, data.train)
    model = make_model(config, tokenizer.size)
    train, test = make_pipelines(config, tokenizer, data)
    characters, streams = characters_of(tokenizer), config.feed == "streams"

    def init(key: Key):
        return initialise(model, key, jnp.zeros((1, config.length), jnp.int32))

    def loss(params, model_state, batch, key, *, train):
        rngs = {"dropout": derive(key, "dropout")} if train else None
        carry = restart(batch["carry"], batch["reset"]) if streams else None
        inputs = batch["tokens"], carry
        (logits, carry), model_state = apply(
            model, params, model_state, *inputs, train=train, rngs=rngs
        )
        losses = softmax_cross_entropy(logits, batch["targets"])
        metrics = language_metrics(losses, batch["targets"], batch.get("mask"), characters)
        return metrics["loss"], Aux(metrics, model_state, carry if streams else None)

    def sample(state: TrainState, workdir: Workdir) -> None:
        writer = Writer(model, gathered(state.weights), tokenizer)
        path = workdir.samples / f"{int(state.step)}.txt"
        write_sample(writer, config.prompt, path, tokens=config.sample)

    def finish(state: TrainState, workdir: Workdir, placement: Placement) -> dict[str, Any]:
        tokens = tokenizer.encode(data.test[:2000])[:400]
        weights = gathered(state.weights)
        activations = np.asarray(unit_activations(model, weights, jnp.asarray(tokens)))
        chosen = activations[:, slow_units(activations, 3)]
        pieces = [tokenizer.decode([token]) for token in tokens.tolist()]
        draw_activations(pieces, chosen, workdir.figures / "activations.png")
        workdir.model.mkdir(exist_ok=True)
        tokenizer.save(workdir.model)
        last = workdir.samples / f"{int(state.step)}.txt"
        if last.exists():
            say(f"\n{last.read_text()}\n")
        return {"baselines": report_baselines(data)}

    return Experiment(
        dataset=data.name,
        model=model,
        about={"input_shape": [config.length], "input_dtype": "int32"},
        init=init,
        loss=loss,
        train=train,
        test=test,
        metric=("bits_per_char", "min"),
        unit="tokens",
        units_per_example=config.length,
        carry=model.initial_carry if streams else None,
        observe=sample,
        finish=finish,
    )


SCRIPT = Script(
    name="language_modeling",
    presets=PRESETS,
    build=build,
    verbs={"generate": write_on, "score": score},
)

if __name__ == "__main__":
    SCRIPT.main()
