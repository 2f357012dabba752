"""Weights of Inception, as pytorch-fid has them from TensorFlow's graph of 2015-12-05.

| there                                     | jaxdl                 | shape there | here        |
|-------------------------------------------|-----------------------|-------------|-------------|
| `Mixed_5b.branch1x1.conv.weight`          | `.../branch1x1/kernel`| [o, c, h, w]| [h, w, c, o]|
| `Mixed_5b.branch1x1.bn.weight`, `bias`,   | folded into `kernel`  | [o]         |             |
| `running_mean` and `running_var`          | and `bias`            |             | [o]         |
| `fc.weight`, `fc.bias`                    | none                  | [1008, 2048]|             |

The classifier `fc` is read for its shape alone: the network of torchvision, which has the same
names and features that give other distances, has 1000 classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.errors import UserError
from jaxdl.interop.safetensors import load_arrays
from jaxdl.interop.torch import Entries, StateDict, conv_kernel
from jaxdl.models import Inception
from jaxdl.types import Params

EPSILON = 1e-3  # of the batch normalisation


def load_inception(path: str | Path) -> Params:
    """Reads the weights of `jaxdl.models.Inception` from a file, .pth or .safetensors.

    The former, `pt_inception-2015-12-05-6726825d.pth` of the pytorch-fid project, takes PyTorch;
    the latter has the same names and does not. Raises UserError, naming the file, where it is
    missing or damaged, where PyTorch is needed and is not there, and as `inception_from_torch`.
    """
    path = Path(path)
    state = load_arrays(path) if path.suffix == ".safetensors" else _load_by_torch(path)
    try:
        return inception_from_torch(state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def inception_from_torch(state_dict: StateDict) -> Params:
    """Carries the weights of pytorch-fid's Inception into `jaxdl.models.Inception`.

    Batch normalisation, g (x - mean) / sqrt(variance + epsilon) + b, is folded into the
    convolution before it. Returns float32 arrays of NumPy that share no memory with the state
    dict. Raises UserError, naming the first entry that is missing, of another shape, or unknown.
    """
    # How many batches were seen in training is no weight, and not in every file.
    weights = {n: a for n, a in state_dict.items() if not n.endswith(".num_batches_tracked")}
    entries = Entries(weights, where="the state dict")
    params = {path: _unit(entries, ".".join(path), shape) for path, shape in _kernels().items()}
    entries.take("fc.weight", (1008, 2048))
    entries.take("fc.bias", (1008,))
    entries.finish()
    return flax.traverse_util.unflatten_dict(params)


def _unit(entries: Entries, name: str, kernel: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Takes a convolution and its batch normalisation as one convolution with a bias."""
    h, w, c, o = kernel
    weight = entries.take(f"{name}.conv.weight", (o, c, h, w))
    scale, offset, mean, variance = (
        entries.take(f"{name}.bn.{part}", (o,)).astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = scale / np.sqrt(variance + EPSILON)
    folded = {"kernel": conv_kernel(weight) * scale, "bias": offset - mean * scale}
    return {part: array.astype(np.float32) for part, array in folded.items()}


def _kernels() -> dict[tuple[str, ...], tuple[int, ...]]:
    """Lists the shapes of the network's kernels, by the path to the layer."""
    init = lambda: Inception().init(jax.random.key(0), jnp.zeros((1, 1, 1, 3)))  # noqa: E731
    leaves: dict[Any, Any] = flax.traverse_util.flatten_dict(jax.eval_shape(init)["params"])
    return {path[:-1]: leaf.shape for path, leaf in leaves.items() if path[-1] == "kernel"}


def _load_by_torch(path: Path) -> StateDict:
    if not path.is_file():
        raise UserError(f"{path} is missing, or no file")
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} can be read by PyTorch alone, which is not installed: pip install"
            " 'jaxdl[reference]', or give the same arrays as a .safetensors file"
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler stumbles over anything, in its own words
        raise UserError(f"{path} is damaged, or no state dict of PyTorch") from error
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{path} holds no state dict of PyTorch")
    return state
