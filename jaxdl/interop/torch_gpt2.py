"""Weights of GPT-2, as Hugging Face's `GPT2LMHeadModel` names them, in and out.

| Hugging Face              | jaxdl                                   | shape there | here       |
|---------------------------|-----------------------------------------|-------------|------------|
| `wte.weight`              | `embed/embedding`                       | [v, d]      | [v, d]     |
| `wpe.weight`              | `positions/embedding`                   | [limit, d]  | [limit, d] |
| `h.0.ln_1`                | `decoder/blocks_0/attention_norm`       |             |            |
| `h.0.attn.c_attn.weight`  | `.../attention/query`, `key` and `value`| [d, 3 d]    | 3 x [d, d] |
| `h.0.attn.c_proj.weight`  | `.../attention/out/kernel`              | [i, o]      | [i, o]     |
| `h.0.ln_2`                | `.../mlp_norm`                          |             |            |
| `h.0.mlp.c_fc.weight`     | `.../mlp/up/kernel`                     | [d, 4 d]    | [d, 4 d]   |
| `h.0.mlp.c_proj.weight`   | `.../mlp/down/kernel`                   | [4 d, d]    | [4 d, d]   |
| `ln_f`                    | `decoder/norm`                          |             |            |
| `lm_head.weight`          | none: the output is tied to `embed`     | [v, d]      |            |

All but the last may stand behind `transformer.`. Nothing is transposed: what is called `Conv1D`
there is a dense layer whose weight is [i, o]. Old checkpoints also keep masks, `attn.bias` and
`attn.masked_bias`, which are no weights and are left.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from jaxdl.interop.leaves import Leaf, dense_leaves, norm_leaves, read_leaves, write_leaves
from jaxdl.interop.safetensors import flatten
from jaxdl.interop.stacks import looped
from jaxdl.interop.torch import Entries, StateDict, as_tensors
from jaxdl.types import Params

PREFIX = "transformer."
HEAD = "lm_head.weight"
_MASKS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias")


def gpt2_from_torch(state_dict: StateDict) -> Params:
    """Carries a `GPT2LMHeadModel`, or the `GPT2Model` in it, into `jaxdl.models.TransformerLM`.

    Widths and depth are read off the state dict; the blocks are those of a loop, see
    `jaxdl.interop.stacks`. Returns float32 arrays of NumPy that share no memory with it. Raises
    UserError, naming the first entry that is missing, of another shape, or unknown, and where the
    output is not tied to the embedding.
    """
    weights = {name: array for name, array in state_dict.items() if not _MASKS.fullmatch(name)}
    entries = Entries(weights, where="the state dict")
    there = PREFIX if any(name.startswith(PREFIX) for name in weights) else ""
    layers = entries.count(f"{there}h.", r"ln_1\.weight")
    tokens, limit = (entries.size(f"{there}{name}.weight") for name in ("wte", "wpe"))
    width = entries.size(f"{there}wte.weight", 1)
    params = read_leaves(entries, _leaves(there, (tokens, limit), width, layers=layers))
    embedding = params["embed"]["embedding"]
    if HEAD in entries.left and not np.array_equal(entries.take(HEAD, embedding.shape), embedding):
        entries.refuse(f"{HEAD} differs from {there}wte.weight: this model is not tied")
    entries.finish()
    return params


def gpt2_to_torch(params: Params, *, tensors: bool = False) -> dict[str, Any]:
    """Carries a `TransformerLM` of style "gpt2" into a state dict of `GPT2LMHeadModel`.

    The inverse of `gpt2_from_torch`, bit for bit, of blocks from a loop or a scan: arrays of NumPy,
    or where `tensors`, tensors of PyTorch. Raises UserError alike.
    """
    loops = {name: looped(tree) for name, tree in params.items()}
    entries = Entries(flatten(loops), where="the parameters")
    layers = entries.count("decoder.blocks_", r"attention_norm\.scale")
    tokens, limit = (entries.size(f"{name}.embedding") for name in ("embed", "positions"))
    width = entries.size("embed.embedding", 1)
    state = write_leaves(entries, _leaves(PREFIX, (tokens, limit), width, layers=layers))
    entries.finish()
    state[HEAD] = state[f"{PREFIX}wte.weight"].copy()
    return as_tensors(state) if tensors else state


def _leaves(there: str, embeddings: tuple[int, int], d: int, *, layers: int) -> list[Leaf]:
    tokens, limit = embeddings
    leaves = [
        Leaf(f"{there}wte.weight", ("embed.embedding",), (tokens, d)),
        Leaf(f"{there}wpe.weight", ("positions.embedding",), (limit, d)),
    ]
    for i in range(layers):
        leaves += _block(f"{there}h.{i}.", f"decoder.blocks_{i}.", d)
    return leaves + norm_leaves(f"{there}ln_f.", "decoder.norm.", d)


def _block(there: str, here: str, d: int) -> list[Leaf]:
    query, key, value = (f"{here}attention.{name}." for name in ("query", "key", "value"))
    layers = [
        ("attn.c_attn.", (query, key, value), (d, d)),
        ("attn.c_proj.", (f"{here}attention.out.",), (d, d)),
        ("mlp.c_fc.", (f"{here}mlp.up.",), (d, 4 * d)),
        ("mlp.c_proj.", (f"{here}mlp.down.",), (4 * d, d)),
    ]
    return [
        *norm_leaves(f"{there}ln_1.", f"{here}attention_norm.", d),
        *norm_leaves(f"{there}ln_2.", f"{here}mlp_norm.", d),
        *(
            leaf
            for stem, names, shape in layers
            for leaf in dense_leaves(f"{there}{stem}", names, shape, transposed=False)
        ),
    ]
