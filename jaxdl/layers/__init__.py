"""Layers: a pure function first, a Flax module around it second."""

from jaxdl.layers.activations import ACTIVATIONS, Activation, activation
from jaxdl.layers.conv import Conv, conv, max_pool
from jaxdl.layers.dropout import Dropout, dropout

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Conv",
    "Dropout",
    "activation",
    "conv",
    "dropout",
    "max_pool",
]
