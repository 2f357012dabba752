"""Random keys are derived, never threaded.

A draw depends on the run's key, on the step and on its purpose alone, so a resumed run, another
order of calls or one more consumer of randomness changes no other draw.
"""

import zlib

import jax

from jaxdl.types import Array, Key


def derive(key: Key, *path: str | int | Array) -> Key:
    """Returns the key for `path` below `key`: names are hashed (CRC-32), numbers folded as is.

    >>> dropout_key = derive(state.key, state.step, "dropout")  # doctest: +SKIP
    """
    for part in path:
        data = zlib.crc32(part.encode()) if isinstance(part, str) else part
        key = jax.random.fold_in(key, data)
    return key
