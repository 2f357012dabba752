"""Networks, and nothing but networks: Flax modules with typed shapes and no hidden state."""

from jaxdl.models.cnn import ReferenceCNN, ResidualCNN
from jaxdl.models.encoder_decoder import EncoderDecoder
from jaxdl.models.inception import Inception
from jaxdl.models.mlp import MLP
from jaxdl.models.rnn import RecurrentLM, SequenceClassifier, SequenceTagger
from jaxdl.models.text_to_image import TextToImage
from jaxdl.models.transformer import TransformerLM
from jaxdl.models.unet import UNet

__all__ = [
    "MLP",
    "EncoderDecoder",
    "Inception",
    "RecurrentLM",
    "ReferenceCNN",
    "ResidualCNN",
    "SequenceClassifier",
    "SequenceTagger",
    "TextToImage",
    "TransformerLM",
    "UNet",
]
