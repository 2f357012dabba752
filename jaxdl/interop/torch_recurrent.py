"""Weights of recurrent layers, and of language models on them, from PyTorch and back.

| PyTorch                | jaxdl                      | shape there | here     |
|------------------------|----------------------------|-------------|----------|
| `weight_ih_l0`         | `layer1/input_kernel`      | [g h, d]    | [d, g h] |
| `weight_hh_l0`         | `layer1/recurrent_kernel`  | [g h, h]    | [h, g h] |
| `bias_ih_l0`           | `layer1/input_bias`        | [g h]       | [g h]    |
| `bias_hh_l0`           | `layer1/recurrent_bias`    | [g h]       | [g h]    |
| `weight_ih_l0_reverse` | `layer1_reverse/input_...` |             |          |

The gates have one order on both sides, so the same functions serve `nn.RNN`, `nn.LSTM` and
`nn.GRU`. Whether an `nn.RNN` is of tanh or of ReLU its state dict does not say.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxdl.errors import UserError
from jaxdl.interop.safetensors import flatten
from jaxdl.interop.torch import (
    Entries,
    StateDict,
    as_tensors,
    dense_from_torch,
    dense_kernel,
    dense_to_torch,
    dense_weight,
)
from jaxdl.types import Params

SUFFIXES = ("", "_reverse")


def recurrent_from_torch(state_dict: StateDict) -> Params:
    """Carries the weights of `nn.RNN`, `nn.LSTM` or `nn.GRU` into `jaxdl.layers.Recurrent`.

    Depth, widths and directions are read off the state dict. Returns float32 arrays of NumPy that
    share no memory with it. Raises UserError, naming the first entry that is missing, of another
    shape, or unknown: layers without biases and LSTMs with projections are not known.
    """
    entries = Entries(state_dict, where="the state dict")
    params = _stack_from_torch(entries, "")
    entries.finish()
    return params


def recurrent_to_torch(params: Params, *, tensors: bool = False) -> dict[str, Any]:
    """Carries the weights of `jaxdl.layers.Recurrent` into a state dict of PyTorch.

    The inverse of `recurrent_from_torch`, bit for bit: arrays of NumPy, or where `tensors`, tensors
    of PyTorch. Raises UserError alike; normalised layers have no counterpart in PyTorch.
    """
    entries = Entries(flatten(params), where="the parameters")
    state = _stack_to_torch(entries, "", "")
    entries.finish()
    return as_tensors(state) if tensors else state


def recurrent_lm_from_torch(state_dict: StateDict, *, tied: bool = False) -> Params:
    """Carries a language model into `jaxdl.models.RecurrentLM`.

    Its parts are named as in pytorch/examples' `word_language_model`: `encoder`, an `nn.Embedding`,
    `rnn`, and `decoder`, an `nn.Linear`, which where `tied` has the encoder's weight. Returns and
    raises as `recurrent_from_torch`.
    """
    entries = Entries(state_dict, where="the state dict")
    embedding = entries.take("encoder.weight", (None, None))
    params: dict[str, Any] = {"embed": {"embedding": embedding}}
    params["recurrent"] = _stack_from_torch(entries, "rnn.", embedding.shape[1])
    width = params["recurrent"]["layer1"]["recurrent_kernel"].shape[0]
    output = dense_from_torch(entries, "decoder", width)
    if width != embedding.shape[1]:
        raise UserError(f"the encoder is {embedding.shape[1]} wide and the layers {width}")
    if tied and not np.array_equal(output["kernel"].T, embedding):
        raise UserError("decoder.weight differs from encoder.weight: this model is not tied")
    params |= {"output_bias": output["bias"]} if tied else {"output": output}
    entries.finish()
    return params


def recurrent_lm_to_torch(params: Params, *, tensors: bool = False) -> dict[str, Any]:
    """Carries a `jaxdl.models.RecurrentLM` into a state dict: `recurrent_lm_from_torch` inverted.

    That the output is tied is read off the parameters.
    """
    entries = Entries(flatten(params), where="the parameters")
    embedding = entries.take("embed.embedding", (None, None))
    state = {"encoder.weight": embedding}
    state |= _stack_to_torch(entries, "recurrent.", "rnn.", embedding.shape[1])
    if "output_bias" in entries.left:
        bias = entries.take("output_bias", embedding.shape[:1])
        state |= {"decoder.weight": embedding.copy(), "decoder.bias": bias}
    else:
        output = dense_to_torch(entries, "output", None)
        state |= {f"decoder.{part}": output[f"output.{part}"] for part in ("weight", "bias")}
    entries.finish()
    return as_tensors(state) if tensors else state


def _stack_from_torch(entries: Entries, prefix: str, inputs: int | None = None) -> dict[str, Any]:
    params: dict[str, Any] = {}
    suffixes = [s for s in SUFFIXES if not s or f"{prefix}weight_ih_l0{s}" in entries.left]
    for i in range(entries.count(f"{prefix}weight_ih_l", "")):
        for suffix in suffixes:
            name = f"l{i}{suffix}"
            params[f"layer{i + 1}{suffix}"] = _layer_from_torch(entries, prefix, name, inputs)
        width = params[f"layer{i + 1}"]["recurrent_kernel"].shape[0]
        inputs = width * len(suffixes)
    return params


def _stack_to_torch(
    entries: Entries, ours: str, theirs: str, inputs: int | None = None
) -> dict[str, np.ndarray]:
    state: dict[str, np.ndarray] = {}
    suffixes = [s for s in SUFFIXES if not s or f"{ours}layer1{s}.input_kernel" in entries.left]
    for i in range(entries.count(f"{ours}layer", "input_kernel")):
        for suffix in suffixes:
            layer = _layer_to_torch(entries, f"{ours}layer{i + 1}{suffix}", inputs)
            state |= {f"{theirs}{part}_l{i}{suffix}": array for part, array in layer.items()}
        inputs = state[f"{theirs}weight_hh_l{i}"].shape[1] * len(suffixes)
    return state


def _layer_from_torch(
    entries: Entries, prefix: str, name: str, inputs: int | None
) -> dict[str, np.ndarray]:
    recurrent = entries.take(f"{prefix}weight_hh_{name}", (None, None))
    wide = recurrent.shape[0]
    return {
        "input_kernel": dense_kernel(entries.take(f"{prefix}weight_ih_{name}", (wide, inputs))),
        "recurrent_kernel": dense_kernel(recurrent),
        "input_bias": entries.take(f"{prefix}bias_ih_{name}", (wide,)),
        "recurrent_bias": entries.take(f"{prefix}bias_hh_{name}", (wide,)),
    }


def _layer_to_torch(entries: Entries, name: str, inputs: int | None) -> dict[str, np.ndarray]:
    recurrent = entries.take(f"{name}.recurrent_kernel", (None, None))
    wide = recurrent.shape[1]
    return {
        "weight_ih": dense_weight(entries.take(f"{name}.input_kernel", (inputs, wide))),
        "weight_hh": dense_weight(recurrent),
        "bias_ih": entries.take(f"{name}.input_bias", (wide,)),
        "bias_hh": entries.take(f"{name}.recurrent_bias", (wide,)),
    }
