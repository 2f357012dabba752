"""Two ways to feed a text, under the contract of `jaxdl.data.pipeline`.

`Windows` are stretches of t tokens from all over the text, each read without what came before it.
`Streams` are b readers that go through the text side by side, t tokens a batch, so that a carry can
pass from batch to batch (truncated backpropagation through time, Williams and Peng 1990).

The tokens live on the device; what travels is where each row starts. Position p of a text of N
tokens is the prediction of token p + 1 from tokens up to p, so there are N - 1 of them, and in
evaluation each counts exactly once, at any batch size.
"""

from __future__ import annotations

import abc
import functools
import sys
from collections.abc import Generator, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxdl.data.order import Order, this_process
from jaxdl.data.pipeline import HostBatch
from jaxdl.errors import UserError
from jaxdl.types import Batch


class _Text(abc.ABC):
    """What both ways share: the tokens on the device, and how a batch is looked up in them."""

    def __init__(self, tokens: Int[np.ndarray, " _"], length: int, seed: int | None):
        if length < 1:
            raise UserError(f"a window must have at least 1 token, not {length}")
        if len(tokens) < 2:
            raise UserError(f"a text of {len(tokens)} token(s) predicts nothing")
        self.length = length
        self.seed = seed
        self.predictions = len(tokens) - 1
        self.arrays: Mapping[str, np.ndarray] = {"text": tokens.astype(smallest(tokens))}

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def batch(self, step: int) -> HostBatch:
        """Returns where the rows of batch `step` start, and in evaluation what of them counts."""

    def batches(self, start: int = 0) -> Generator[HostBatch, None, None]:
        """Yields the batches from `start` on; there is nothing to prefetch."""
        for step in range(start, len(self) if self.seed is None else sys.maxsize):
            yield self.batch(step)

    def assemble(self, arrays: Mapping[str, Array], batch: Mapping[str, Array]) -> Batch:
        """Looks up "tokens" and the "targets" one further on, int32 (b, t), in the compiled step.

        "reset" passes through; "mask", bool (b, t), is there in evaluation.
        """
        positions = batch["start"][:, None] + jnp.arange(self.length + 1)[None]
        # Beyond the end the last token is repeated; nothing there is counted.
        text = jnp.take(arrays["text"], positions, mode="clip").astype(jnp.int32)
        rows = {"tokens": text[:, :-1], "targets": text[:, 1:]}
        if "reset" in batch:
            rows["reset"] = batch["reset"]
        if "from" in batch:
            positions = positions[:, :-1]
            counted = (batch["from"][:, None] <= positions) & (positions < batch["to"][:, None])
            rows["mask"] = counted
        return rows


class Windows(_Text):
    """Windows of `length` tokens, in random order to train on, or in order to evaluate.

    Training (a seed): every epoch cuts the text into windows on a grid, which begins at an offset
    drawn anew, and goes through them in random order. So an epoch trains on every position once,
    but for less than 2 t of them at the ends, and in time a window starts at each.

    Evaluation (`seed=None`): one pass in order. With `context`, windows overlap by so many tokens,
    which are read and not counted: no position but the first ones is predicted from fewer.

    Raises UserError for a text that is shorter than a window to train on.
    """

    def __init__(
        self,
        tokens: Int[np.ndarray, " _"],
        batch_size: int,
        *,
        length: int,
        seed: int | None,
        context: int = 0,
        shard: tuple[int, int] | None = None,
    ):
        super().__init__(tokens, length, seed)
        self.stride = length - _checked(context, length)
        if seed is None:
            examples = -(-self.predictions // self.stride)
        else:
            # So that at least length - 1 are left over, and the grid can begin at any offset.
            examples = (self.predictions - (length - 1)) // length
            if examples < 1:
                raise UserError(
                    f"a text of {len(tokens)} tokens has no room for windows of {length}; "
                    f"choose windows of at most {len(tokens) // 2}"
                )
        shard = shard or this_process()
        self.order = Order(examples=examples, batch_size=batch_size, seed=seed, shard=shard)

    @property
    def batch_size(self) -> int:
        """Windows in a global batch, over all processes."""
        return self.order.batch_size

    @property
    def examples(self) -> int:
        """Windows in one pass, over all processes."""
        return self.order.examples

    def __len__(self) -> int:
        return len(self.order)

    def batch(self, step: int) -> HostBatch:
        """Returns {"start": int32 (b)}, in evaluation also "from" and "to": what is counted."""
        index, mask = self.order.indices(step)
        if mask is not None:
            first = np.where(mask, index * self.stride, self.predictions)
            stop = np.minimum(first + self.stride, self.predictions)
            start = np.maximum(first - (self.length - self.stride), 0)
            return _int32({"start": start, "from": first, "to": stop})
        epochs = self.order.positions(step) // self.order.examples
        left = self.predictions - self.order.examples * self.length
        offsets = [_draw(left + 1, seed=self.seed, epoch=int(e)) for e in epochs]
        return _int32({"start": index * self.length + np.array(offsets)})


class Streams(_Text):
    """`batch_size` streams side by side: row i of a batch goes on where row i of the last ended.

    "reset", bool (b), is true where a row starts anew; there a carry begins at zero, by
    `jaxdl.rows.restart`.

    Training (a seed): the text is cut into as many equal streams, each a multiple of `length` long,
    and every epoch goes through them once, beginning at an offset drawn anew from what the cut
    leaves over. All rows start anew together, at an epoch's start.

    Evaluation (`seed=None`): the streams cover the text, the last batches partly masked. A stream
    first reads the `context` tokens before its own, which are not counted: without them the number
    would depend, a little, on how many streams there are.

    Raises UserError for a text that is too short for the streams.
    """

    def __init__(
        self,
        tokens: Int[np.ndarray, " _"],
        batch_size: int,
        *,
        length: int,
        seed: int | None,
        context: int = 0,
        shard: tuple[int, int] | None = None,
    ):
        super().__init__(tokens, length, seed)
        self.context = _checked(context, sys.maxsize)
        self.batch_size = batch_size  # streams, over all processes
        # One pass over the rows, in order: which of them are this process's.
        shard = shard or this_process()
        rows = Order(examples=batch_size, batch_size=batch_size, seed=None, shard=shard)
        self.rows = rows.indices(0)[0]
        if seed is None:
            self.stream = -(-self.predictions // batch_size)
            self.steps = -(-(self.stream + self.context) // length)
        else:
            self.steps = self.predictions // batch_size // length
            self.stream = self.steps * length
        if not self.steps:
            raise UserError(
                f"a text of {len(tokens)} tokens has no room for {batch_size} streams of {length} "
                f"tokens a batch: choose --batch-size {max(1, self.predictions // length)} or less"
            )

    @property
    def examples(self) -> int:
        """Rows of batches in one pass, over all processes."""
        return self.steps * self.batch_size

    def __len__(self) -> int:
        return self.steps

    def batch(self, step: int) -> HostBatch:
        """Returns {"start": int32 (b), "reset": bool (b)}, in evaluation also "from" and "to"."""
        if step < 0 or (self.seed is None and step >= len(self)):
            raise IndexError(f"there is no batch {step}: one pass has {len(self)}")
        epoch, at = divmod(step, self.steps)
        first = self.rows.astype(np.int64) * self.stream
        reset = np.full(len(first), at == 0)
        if self.seed is not None:
            left = self.predictions - self.batch_size * self.stream
            start = first + _draw(left + 1, seed=self.seed, epoch=epoch) + at * self.length
            return {**_int32({"start": start}), "reset": reset}
        first = np.minimum(first, self.predictions)
        stop = np.minimum(first + self.stream, self.predictions)
        start = np.maximum(first - self.context, 0) + at * self.length
        return {**_int32({"start": start, "from": first, "to": stop}), "reset": reset}


def smallest(tokens: Int[np.ndarray, ...]) -> type[np.unsignedinteger | np.signedinteger]:
    """Returns the narrowest type that holds these tokens: uint8, uint16 or int32."""
    largest = int(tokens.max(initial=0))
    return next((t for t in (np.uint8, np.uint16) if largest <= np.iinfo(t).max), np.int32)


@functools.lru_cache(maxsize=4)
def _draw(n: int, *, seed: int, epoch: int) -> int:
    """Draws a number in [0, n), from bits of Philox that `permutation` does not use."""
    key = np.array([seed % 2**64, epoch], np.uint64)
    return int(np.random.Philox(key=key, counter=2**192).random_raw() % n)


def _checked(context: int, length: int) -> int:
    if not 0 <= context < length:
        raise UserError(f"a context of {context} tokens does not lie in [0, {length})")
    return context


def _int32(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(np.int32) for name, array in batch.items()}
