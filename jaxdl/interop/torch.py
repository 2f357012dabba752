"""Weights from PyTorch and back: plain mappings of arrays, so that PyTorch need not be there.

A state dict may come from `module.state_dict()`, or from a .safetensors file by
`jaxdl.interop.safetensors.load_arrays`; tensors are known by their methods, not by their class.

| layer       | PyTorch            | jaxdl              |
|-------------|--------------------|--------------------|
| convolution | weight [o, c, h, w]| kernel [h, w, c, o]|
| dense       | weight [o, i]      | kernel [i, o]      |

PyTorch flattens an image as [c, h, w] and jaxdl as [h, w, c], so the first dense layer behind a
convolution also has its inputs in another order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdl.errors import UserError
from jaxdl.interop.safetensors import flatten
from jaxdl.types import Params

StateDict = Mapping[str, Any]  # of tensors, NumPy arrays or JAX arrays
Image = tuple[int, int, int]  # height, width, channels


def reference_cnn_from_torch(state_dict: StateDict, *, image_size: tuple[int, int]) -> Params:
    """Carries the weights of the reference CNN from PyTorch into `jaxdl.models.ReferenceCNN`.

    Args:
      state_dict: `conv1` ... `convN`, `fc1` and `fc2`, each with "weight" and "bias", of any
        widths; N and the widths are read off it.
      image_size: (height, width) of the images, in pixels, which tells what `fc1` has flattened.

    Returns float32 arrays of NumPy that share no memory with the state dict. Raises UserError,
    naming the first entry that is missing, of another shape, or unknown.
    """
    entries = Entries(state_dict, where="the state dict")
    params, channels = {}, None
    for i in range(1, entries.count("conv", "weight") + 1):
        params[f"conv{i}"] = conv_from_torch(entries, f"conv{i}", channels)
        channels = params[f"conv{i}"]["bias"].size
    image = _last_image(image_size, channels, convs=len(params))
    params["fc1"] = dense_from_torch(entries, "fc1", image)
    params["fc2"] = dense_from_torch(entries, "fc2", params["fc1"]["bias"].size)
    entries.finish()
    return params


def reference_cnn_to_torch(
    params: Params, *, image_size: tuple[int, int], tensors: bool = False
) -> dict[str, Any]:
    """Carries the weights of `jaxdl.models.ReferenceCNN` into a state dict of PyTorch.

    The inverse of `reference_cnn_from_torch`, bit for bit: float32 arrays of NumPy, or where
    `tensors`, tensors of PyTorch, which must then be installed. Raises UserError alike.
    """
    entries = Entries(flatten(params), where="the parameters")
    state, channels = {}, None
    convs = entries.count("conv", "kernel")
    for i in range(1, convs + 1):
        state |= conv_to_torch(entries, f"conv{i}", channels)
        channels = state[f"conv{i}.bias"].size
    image = _last_image(image_size, channels, convs=convs)
    state |= dense_to_torch(entries, "fc1", image)
    state |= dense_to_torch(entries, "fc2", state["fc1.bias"].size)
    entries.finish()
    return as_tensors(state) if tensors else state


def mlp_from_torch(state_dict: StateDict) -> Params:
    """Carries `fc1` ... `fcN`, each an `nn.Linear`, into `jaxdl.models.MLP`.

    The inputs must be vectors, or images flattened in one order on both sides. Returns and raises
    as `reference_cnn_from_torch`.
    """
    entries = Entries(state_dict, where="the state dict")
    params, inputs = {}, None
    for i in range(1, entries.count("fc", "weight") + 1):
        params[f"fc{i}"] = dense_from_torch(entries, f"fc{i}", inputs)
        inputs = params[f"fc{i}"]["bias"].size
    entries.finish()
    return params


def mlp_to_torch(params: Params, *, tensors: bool = False) -> dict[str, Any]:
    """Carries the weights of `jaxdl.models.MLP` into a state dict: `mlp_from_torch` inverted."""
    entries = Entries(flatten(params), where="the parameters")
    state, inputs = {}, None
    for i in range(1, entries.count("fc", "kernel") + 1):
        state |= dense_to_torch(entries, f"fc{i}", inputs)
        inputs = state[f"fc{i}.bias"].size
    entries.finish()
    return as_tensors(state) if tensors else state


def conv_kernel(weight: Float[np.ndarray, "o c h w"]) -> Float[np.ndarray, "h w c o"]:
    """Reorders the weight of an `nn.Conv2d` into the kernel of a convolution, channels last."""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0))


def conv_weight(kernel: Float[np.ndarray, "h w c o"]) -> Float[np.ndarray, "o c h w"]:
    """Reorders the kernel of a convolution into the weight of an `nn.Conv2d`."""
    return np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))


def dense_kernel(
    weight: Float[np.ndarray, "o i"], *, image: Image | None = None
) -> Float[np.ndarray, "i o"]:
    """Transposes the weight of an `nn.Linear` into the kernel of a dense layer.

    `image` is the (height, width, channels) of what both sides flatten into its inputs, PyTorch
    channels first and jaxdl channels last; None where the inputs are no image.
    """
    if image is None:
        return np.ascontiguousarray(weight.T)
    h, w, c = image
    return weight.reshape(-1, c, h, w).transpose(2, 3, 1, 0).reshape(h * w * c, -1)


def dense_weight(
    kernel: Float[np.ndarray, "i o"], *, image: Image | None = None
) -> Float[np.ndarray, "o i"]:
    """Transposes the kernel of a dense layer into the weight of an `nn.Linear`: the inverse."""
    if image is None:
        return np.ascontiguousarray(kernel.T)
    h, w, c = image
    return kernel.reshape(h, w, c, -1).transpose(3, 2, 0, 1).reshape(-1, c * h * w)


def conv_from_torch(entries: Entries, name: str, channels: int | None) -> dict[str, np.ndarray]:
    """Takes a 3x3 convolution of so many input channels (None: any) out of a state dict."""
    weight = entries.take(f"{name}.weight", (None, channels, 3, 3))
    return {"kernel": conv_kernel(weight), "bias": entries.take(f"{name}.bias", weight.shape[:1])}


def conv_to_torch(entries: Entries, name: str, channels: int | None) -> dict[str, np.ndarray]:
    """Takes a 3x3 convolution out of parameters: the inverse of `conv_from_torch`."""
    kernel = entries.take(f"{name}.kernel", (3, 3, channels, None))
    bias = entries.take(f"{name}.bias", kernel.shape[-1:])
    return {f"{name}.weight": conv_weight(kernel), f"{name}.bias": bias}


def dense_from_torch(
    entries: Entries, name: str, inputs: int | Image | None
) -> dict[str, np.ndarray]:
    """Takes a dense layer out of a state dict; its inputs are so many, a flat image, or any."""
    size, image = _inputs(inputs)
    weight = entries.take(f"{name}.weight", (None, size))
    bias = entries.take(f"{name}.bias", weight.shape[:1])
    return {"kernel": dense_kernel(weight, image=image), "bias": bias}


def dense_to_torch(
    entries: Entries, name: str, inputs: int | Image | None
) -> dict[str, np.ndarray]:
    """Takes a dense layer out of parameters: the inverse of `dense_from_torch`."""
    size, image = _inputs(inputs)
    kernel = entries.take(f"{name}.kernel", (size, None))
    bias = entries.take(f"{name}.bias", kernel.shape[-1:])
    return {f"{name}.weight": dense_weight(kernel, image=image), f"{name}.bias": bias}


class Entries:
    """A mapping of arrays whose entries are taken one by one, each in its shape, to the last."""

    def __init__(self, arrays: StateDict, *, where: str):
        self.left = dict(arrays)
        self.where = where

    def count(self, stem: str, part: str) -> int:
        """Returns the number of entries `<stem>i.<part>`, at least 1: how far to look for them.

        Without a part they are named `<stem>i`.
        """
        pattern = re.compile(rf"{re.escape(stem)}\d+" + (rf"\.{part}" if part else ""))
        return max(1, sum(pattern.fullmatch(name) is not None for name in self.left))

    def take(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Removes an entry and returns it, a fresh float32 array; None fits any size of an axis.

        Raises UserError where it is missing, or has another shape or no floating type.
        """
        if name not in self.left:
            self.refuse(f"{name} is missing")
        array = to_numpy(self.left.pop(name))
        fits = array.ndim == len(shape) and all(
            size in (None, there) for size, there in zip(shape, array.shape, strict=True)
        )
        if not fits:
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            self.refuse(f"{name} has shape {list(array.shape)}, expected [{sizes}]")
        if not jnp.issubdtype(array.dtype, jnp.floating):  # jnp's knows the half types
            self.refuse(f"{name} is of type {array.dtype}, expected floating numbers")
        return np.array(array, np.float32, order="C")

    def size(self, name: str, axis: int = 0) -> int:
        """Returns the size of an axis of an entry, which stays; raises UserError if it has none."""
        if name not in self.left:
            self.refuse(f"{name} is missing")
        shape = np.shape(self.left[name])
        if axis >= len(shape):
            self.refuse(f"{name} has shape {list(shape)}, expected {axis + 1} axes or more")
        return shape[axis]

    def finish(self) -> None:
        """Raises UserError where something has not been taken."""
        if self.left:
            self.refuse(f"{next(iter(self.left))} is unknown")

    def refuse(self, what: str) -> NoReturn:
        """Raises UserError, which says where, and what."""
        raise UserError(f"{self.where}: {what}")


def to_numpy(array: Any) -> np.ndarray:
    """Views an array, or a tensor wherever it lies, as an array of NumPy; its type is kept.

    A bfloat16 tensor, which NumPy has no type for, comes as float32.
    """
    if not hasattr(array, "detach"):
        return np.asarray(array)
    tensor = array.detach().cpu()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Turns fresh arrays into tensors on the CPU; raises UserError where PyTorch is missing."""
    try:
        import torch
    except ImportError as error:
        raise UserError("PyTorch is not installed: pip install 'jaxdl[reference]'") from error
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _inputs(inputs: int | Image | None) -> tuple[int | None, Image | None]:
    if isinstance(inputs, tuple):
        return int(np.prod(inputs)), inputs
    return inputs, None


def _last_image(image_size: tuple[int, int], channels: int | None, *, convs: int) -> Image:
    """Returns (height, width, channels) behind the last pool: all but the first conv are pooled."""
    factor = 2 ** (convs - 1)
    height, width = image_size
    if height < 1 or width < 1 or height % factor or width % factor:
        raise UserError(
            f"images of {height}x{width} do not halve evenly {convs - 1} times: both sides must be"
            f" multiples of {factor}"
        )
    assert channels is not None, "count() is at least 1"
    return height // factor, width // factor, channels
