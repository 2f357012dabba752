"""Weights of attention, of stacks of blocks and of whole transformers, from PyTorch and back.

| PyTorch                       | jaxdl                              | shape there | here       |
|-------------------------------|------------------------------------|-------------|------------|
| `in_proj_weight`              | `query`, `key`, `value` / `kernel` | [3 d, d]    | 3 x [d, d] |
| `in_proj_bias`                | `query`, `key`, `value` / `bias`   | [3 d]       | 3 x [d]    |
| `out_proj.weight`             | `out/kernel`                       | [o, i]      | [i, o]     |
| `layers.0.self_attn`          | `blocks_0/attention`               |             |            |
| `layers.0.norm1`              | `blocks_0/attention_norm`          |             |            |
| `layers.0.multihead_attn`     | `blocks_0/cross`, a decoder's      |             |            |
| `layers.0.norm2`, a decoder's | `blocks_0/cross_norm`              |             |            |
| `layers.0.linear1.weight`     | `blocks_0/mlp/up/kernel`           | [o, i]      | [i, o]     |
| `layers.0.linear2.weight`     | `blocks_0/mlp/down/kernel`         | [o, i]      | [i, o]     |
| `layers.0.norm2`, or `norm3`  | `blocks_0/mlp_norm`                |             |            |
| `norm`, on top of the stack   | `norm`                             |             |            |

The heads a state dict does not tell, nor whether blocks normalise first (`norm_first=True` is
`post_norm=False`), nor their activation: PyTorch's "relu" is `relu`, and `gelu` is that of
`torch.nn.GELU("tanh")`, not PyTorch's "gelu".
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxdl.interop.leaves import Leaf, dense_leaves, norm_leaves, read_leaves, write_leaves
from jaxdl.interop.safetensors import flatten
from jaxdl.interop.stacks import looped
from jaxdl.interop.torch import Entries, StateDict, as_tensors
from jaxdl.types import Params


def attention_from_torch(state_dict: StateDict) -> Params:
    """Carries the weights of `nn.MultiheadAttention` into `jaxdl.layers.attention.Attention`.

    Width and biases are read off the state dict. Returns float32 arrays of NumPy that share no
    memory with it. Raises UserError, naming the first entry that is missing, of another shape, or
    unknown: keys and values of widths of their own (`kdim`, `vdim`) and biases among them
    (`add_bias_kv`) are not known.
    """
    entries = Entries(state_dict, where="the state dict")
    if "q_proj_weight" in entries.left:
        entries.refuse("q_proj_weight is unknown: keys and values have other widths (kdim, vdim)")
    width = entries.size("out_proj.weight")
    params = read_leaves(entries, _attention("", "", width, bias=_biased(entries, "")))
    entries.finish()
    return params


def attention_to_torch(params: Params, *, tensors: bool = False) -> dict[str, Any]:
    """Carries the weights of `Attention` into a state dict of `nn.MultiheadAttention`.

    The inverse of `attention_from_torch`, bit for bit: arrays of NumPy, or where `tensors`, tensors
    of PyTorch. Raises UserError alike; shared heads (`kv_heads`) and normalised queries have no
    counterpart in PyTorch.
    """
    entries = Entries(flatten(params), where="the parameters")
    width = entries.size("out.kernel")
    state = write_leaves(entries, _attention("", "", width, bias=_biased(entries, "")))
    entries.finish()
    return as_tensors(state) if tensors else state


def stack_from_torch(state_dict: StateDict) -> Params:
    """Carries `nn.TransformerEncoder` or `nn.TransformerDecoder` into `jaxdl.layers.block.Stack`.

    Which of them it is, widths, biases, and whether a normalisation is on top, are read off the
    state dict; the blocks are those of a loop, see `jaxdl.interop.stacks`. Returns and raises as
    `attention_from_torch`.
    """
    entries = Entries(state_dict, where="the state dict")
    params = read_leaves(entries, _stack("", _sizes_there(entries, "")))
    entries.finish()
    return params


def stack_to_torch(params: Params, *, tensors: bool = False) -> dict[str, Any]:
    """Carries the weights of a `Stack`, of a loop or a scan: `stack_from_torch` inverted."""
    entries = Entries(flatten(looped(params)), where="the parameters")
    state = write_leaves(entries, _stack("", _sizes_here(entries, "")))
    entries.finish()
    return as_tensors(state) if tensors else state


def transformer_from_torch(state_dict: StateDict) -> Params:
    """Carries `nn.Transformer` into {"encoder": ..., "decoder": ...}, parameters of two `Stack`s.

    They are what `jaxdl.models.EncoderDecoder` has beside its embedding, which `nn.Transformer`
    has not. Returns and raises as `stack_from_torch`.
    """
    entries = Entries(state_dict, where="the state dict")
    encoder, decoder = (_sizes_there(entries, stem) for stem in ("encoder.", "decoder."))
    params = read_leaves(entries, _transformer(encoder, decoder))
    entries.finish()
    return params


def transformer_to_torch(params: Params, *, tensors: bool = False) -> dict[str, Any]:
    """Carries {"encoder": ..., "decoder": ...} to PyTorch: `transformer_from_torch` inverted."""
    loops = {name: looped(tree) for name, tree in params.items()}
    entries = Entries(flatten(loops), where="the parameters")
    encoder, decoder = (_sizes_here(entries, stem) for stem in ("encoder.", "decoder."))
    state = write_leaves(entries, _transformer(encoder, decoder))
    entries.finish()
    return as_tensors(state) if tensors else state


class _Sizes(NamedTuple):
    """What a stack's arrays say of it."""

    layers: int
    width: int
    hidden: int
    bias: bool
    across: bool
    norm: bool


def _sizes_there(entries: Entries, stem: str) -> _Sizes:
    first = f"{stem}layers.0."
    return _Sizes(
        layers=entries.count(f"{stem}layers.", r"linear1\.weight"),
        width=entries.size(f"{first}norm1.weight"),
        hidden=entries.size(f"{first}linear1.weight"),
        bias=_biased(entries, stem),
        across=_any(entries, f"{first}multihead_attn."),
        norm=_any(entries, f"{stem}norm."),
    )


def _sizes_here(entries: Entries, stem: str) -> _Sizes:
    first = f"{stem}blocks_0."
    return _Sizes(
        layers=entries.count(f"{stem}blocks_", r"mlp\.down\.kernel"),
        width=entries.size(f"{first}attention_norm.scale"),
        hidden=entries.size(f"{first}mlp.down.kernel"),
        bias=_biased(entries, stem),
        across=_any(entries, f"{first}cross."),
        norm=_any(entries, f"{stem}norm."),
    )


def _any(entries: Entries, stem: str) -> bool:
    return any(name.startswith(stem) for name in entries.left)


def _biased(entries: Entries, stem: str) -> bool:
    """Tells whether layers have biases: all, or none; one that is missing is then told."""
    return any(name.startswith(stem) and name.endswith("bias") for name in entries.left)


def _transformer(encoder: _Sizes, decoder: _Sizes) -> list[Leaf]:
    """Lists an `nn.Transformer`, whose two sides have one width, and a normalisation on top."""
    decoder = decoder._replace(width=encoder.width, across=True, norm=True)
    encoder = encoder._replace(across=False, norm=True)
    return _stack("encoder.", encoder) + _stack("decoder.", decoder)


def _stack(stem: str, sizes: _Sizes) -> list[Leaf]:
    leaves = [
        leaf
        for i in range(sizes.layers)
        for leaf in _block(f"{stem}layers.{i}.", f"{stem}blocks_{i}.", sizes)
    ]
    bias = {"bias": sizes.bias}
    return leaves + (norm_leaves(f"{stem}norm.", f"{stem}norm.", sizes.width, **bias) * sizes.norm)


def _block(theirs: str, ours: str, sizes: _Sizes) -> list[Leaf]:
    _, d, hidden, bias, across, _ = sizes
    norms = (
        ["attention_norm", "cross_norm", "mlp_norm"] if across else ["attention_norm", "mlp_norm"]
    )
    parts = _attention(f"{theirs}self_attn.", f"{ours}attention.", d, bias=bias)
    if across:
        parts += _attention(f"{theirs}multihead_attn.", f"{ours}cross.", d, bias=bias)
    for name, part, shape in ("linear1", "up", (d, hidden)), ("linear2", "down", (hidden, d)):
        parts += dense_leaves(
            f"{theirs}{name}.", [f"{ours}mlp.{part}."], shape, bias=bias, transposed=True
        )
    for i, name in enumerate(norms, 1):
        parts += norm_leaves(f"{theirs}norm{i}.", f"{ours}{name}.", d, bias=bias)
    return parts


def _attention(theirs: str, ours: str, d: int, *, bias: bool) -> list[Leaf]:
    inner = [f"{ours}{name}." for name in ("query", "key", "value")]
    layers = (f"{theirs}in_proj_", inner), (f"{theirs}out_proj.", [f"{ours}out."])
    return [
        leaf
        for stem, names in layers
        for leaf in dense_leaves(stem, names, (d, d), bias=bias, transposed=True)
    ]
