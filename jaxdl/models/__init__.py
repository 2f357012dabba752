"""Networks, and nothing but networks: Flax modules with typed shapes and no hidden state."""

from jaxdl.models.cnn import ReferenceCNN, ResidualCNN
from jaxdl.models.mlp import MLP
from jaxdl.models.rnn import RecurrentLM, SequenceClassifier, SequenceTagger
from jaxdl.models.translator import Translator

__all__ = [
    "MLP",
    "RecurrentLM",
    "ReferenceCNN",
    "ResidualCNN",
    "SequenceClassifier",
    "SequenceTagger",
    "Translator",
]
