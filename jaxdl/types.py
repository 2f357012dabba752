"""The axis glossary, and the few types that every other module speaks.

Axes, the same letters in annotations and in einsum strings:

| letter  | axis                          |
|---------|-------------------------------|
| b       | batch                         |
| t       | time, of the query            |
| s       | time, of the source or key    |
| d       | width of the model            |
| n       | heads                         |
| k       | width of a head               |
| v       | vocabulary, classes           |
| h, w, c | an image, channels last       |

Images are float32, in [0, 1] until a recipe normalises them; labels and tokens are int32.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

Array = jax.Array
Key = jax.Array  # a typed key, as made by `jax.random.key`
PyTree = Any
Params = PyTree  # what the optimiser changes
ModelState = PyTree  # what the model itself changes, e.g. running statistics
Batch = Mapping[str, Array]  # leading axis b; optional "mask", shaped like the unreduced loss

Carry = TypeVar("Carry")
X = TypeVar("X")
Y = TypeVar("Y")
# An RNN cell, a cached decoder, a denoising step and a train step are all of this one shape.
Step = Callable[[Carry, X], tuple[Carry, Y]]
