"""Layers: a pure function first, a Flax module around it second."""

from jaxdl.layers.activations import ACTIVATIONS, Activation, activation
from jaxdl.layers.attention import Attention, KeysValues, attend, causal, same_segment
from jaxdl.layers.block import Block, FeedForward, Stack
from jaxdl.layers.conv import Conv, conv, max_pool
from jaxdl.layers.dense import Dense, dense
from jaxdl.layers.dropout import Dropout, dropout
from jaxdl.layers.embed import Embed, places, rotate, sinusoids
from jaxdl.layers.image_block import Text
from jaxdl.layers.norm import GroupNorm, LayerNorm, RMSNorm, group_norm, layer_norm, rms_norm
from jaxdl.layers.recurrent import LSTMCarry, cell_step
from jaxdl.layers.recurrent_scan import scan_layer
from jaxdl.layers.recurrent_stack import Recurrent, RecurrentLayer
from jaxdl.layers.resample import double, fold, halve, unfold

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Attention",
    "Block",
    "Conv",
    "Dense",
    "Dropout",
    "Embed",
    "FeedForward",
    "GroupNorm",
    "KeysValues",
    "LSTMCarry",
    "LayerNorm",
    "RMSNorm",
    "Recurrent",
    "RecurrentLayer",
    "Stack",
    "Text",
    "activation",
    "attend",
    "causal",
    "cell_step",
    "conv",
    "dense",
    "double",
    "dropout",
    "fold",
    "group_norm",
    "halve",
    "layer_norm",
    "max_pool",
    "places",
    "rms_norm",
    "rotate",
    "same_segment",
    "scan_layer",
    "sinusoids",
    "unfold",
]
