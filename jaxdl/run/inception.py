"""What Inception makes of images: the features that FID is measured in, of weights from a file."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxdl.interop.torch_inception import load_inception
from jaxdl.models import Inception
from jaxdl.run.progress import say
from jaxdl.types import Params

AT_ONCE = 32  # images that are looked at


@dataclasses.dataclass(frozen=True)
class InceptionFeatures:
    """A function of images in [0, 1], the network with its weights on the host."""

    params: Params

    @classmethod
    def read(cls, path: Path) -> InceptionFeatures:
        """Reads the weights; raises UserError as `load_inception`."""
        return cls(load_inception(path))

    def __call__(self, images: Float[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b d"]:
        """Computes the 2048 features of images, as if they were read from files of 8 bits."""
        started = time.monotonic()
        params, parts = jax.device_put(self.params), []
        for start in range(0, len(images), AT_ONCE):
            # The last batch is filled up: its program is there already.
            rows = np.minimum(np.arange(start, start + AT_ONCE), len(images) - 1)
            parts.append(np.asarray(_features(params, stored(images[rows]))))
        say(f"{'inception':<10}{len(images):,} images ({time.monotonic() - started:.0f} s)")
        return np.concatenate(parts)[: len(images)]


def stored(images: Float[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b h w c"]:
    """Rounds images in [0, 1] to the 256 levels that a file of pictures keeps."""
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.float32) / np.float32(255)


@jax.jit
def _features(params: Params, images: Array) -> Array:
    features: Any = Inception().apply({"params": params}, images)
    return features
