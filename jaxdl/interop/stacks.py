"""The two layouts of a `jaxdl.layers.block.Stack`: a loop's blocks by number, a scan's stacked.

| looped, `scan=False`                   | scanned, `scan=True`           |
|----------------------------------------|--------------------------------|
| `blocks_0/...`, `blocks_1/...`, `norm` | `blocks/...` [l, ...], `norm`  |

What comes from PyTorch is looped; what goes there may be either.
"""

from __future__ import annotations

import jax
import numpy as np

from jaxdl.layers.block import unstack
from jaxdl.types import Params


def looped(params: Params) -> Params:
    """Takes the blocks of a scanned stack apart; parameters of anything else stay as they are."""
    if "blocks" not in params:
        return params
    rest = {name: tree for name, tree in params.items() if name != "blocks"}
    layers = len(jax.tree.leaves(params["blocks"])[0])
    blocks = unstack(params["blocks"], layers)
    return {f"blocks_{i}": block for i, block in enumerate(blocks)} | rest


def scanned(params: Params) -> Params:
    """Stacks the blocks of a looped stack, arrays of NumPy: `looped` inverted, bit for bit.

    Parameters of anything else stay as they are.
    """
    names = [f"blocks_{i}" for i in range(len(params)) if f"blocks_{i}" in params]
    if not names:
        return params
    rest = {name: tree for name, tree in params.items() if name not in names}
    blocks = jax.tree.map(lambda *leaves: np.stack(leaves), *(params[name] for name in names))
    return {"blocks": blocks} | rest
