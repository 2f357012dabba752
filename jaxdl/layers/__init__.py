"""Layers: a pure function first, a Flax module around it second."""

from jaxdl.layers.activations import ACTIVATIONS, Activation, activation
from jaxdl.layers.conv import Conv, conv, max_pool
from jaxdl.layers.dropout import Dropout, dropout
from jaxdl.layers.image_block import Text
from jaxdl.layers.norm import GroupNorm, group_norm
from jaxdl.layers.recurrent import LSTMCarry, cell_step
from jaxdl.layers.recurrent_scan import scan_layer
from jaxdl.layers.recurrent_stack import Recurrent, RecurrentLayer
from jaxdl.layers.resample import double, fold, halve, unfold

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Conv",
    "Dropout",
    "GroupNorm",
    "LSTMCarry",
    "Recurrent",
    "RecurrentLayer",
    "Text",
    "activation",
    "cell_step",
    "conv",
    "double",
    "dropout",
    "fold",
    "group_norm",
    "halve",
    "max_pool",
    "scan_layer",
    "unfold",
]
