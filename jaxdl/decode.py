"""Decoding: tokens drawn one after the other from any network that is a step.

    step: (carry, tokens [b]) -> (carry, logits [b v])

A recurrent network's carry is its state, a transformer's is its cache; here they are the same.
Every leaf of a carry has the leading axis b, so a row can be frozen, gathered or copied by itself.

Rows are independent: what is drawn for a row is a function of its own key, prompt and number of
tokens so far, so a ragged batch gives what its rows give one by one, whatever stands beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdl.errors import UserError
from jaxdl.keys import derive
from jaxdl.rows import choose_rows
from jaxdl.sampling import Sampler
from jaxdl.types import Key, PyTree, Step

# (carry, prompts [b s], lengths [b]) -> (carry, logits [b v]): reads a ragged batch of prompts.
Reader = Callable[[PyTree, Array, Array], tuple[PyTree, Array]]


class Generated(NamedTuple):
    """Tokens after the prompt, at most t a row; after a row's end there are zeros.

    A stop token is the last one of its row and counts in `lengths`. Log-probabilities, in nats, are
    those under the network itself, softmax(logits), whatever the sampler made of them.
    """

    tokens: Int[Array, "b t"]
    logprobs: Float[Array, "b t"]
    lengths: Int[Array, " b"]


class Decoding(NamedTuple):
    """What decoding carries from one token to the next."""

    carry: PyTree
    logits: Float[Array, "b v"]  # of the next token
    keys: Key  # one a row, (b); they never change
    count: Int[Array, ""]  # tokens drawn so far
    done: Bool[Array, " b"]


def pad_prompts(
    prompts: Sequence[Int[np.ndarray, " _"]], *, multiple: int = 16
) -> tuple[Int[Array, "b s"], Int[Array, " b"]]:
    """Sets prompts side by side, left aligned and padded with 0: tokens and lengths, int32.

    s is rounded up to a multiple, so that prompts of similar lengths share a compiled program.
    Raises UserError for a prompt that is empty: nothing follows from nothing.
    """
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    if not len(lengths) or not lengths.min():
        raise UserError("a prompt is empty; begin with one token at least, such as a line feed")
    tokens = np.zeros((len(prompts), -(-lengths.max() // multiple) * multiple), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return jnp.array(tokens), jnp.array(lengths)


def in_batches(
    prompts: Sequence[Int[np.ndarray, " _"]],
    write: Callable[[Array, Array], Array],
    *,
    batch_size: int,
) -> list[Int[np.ndarray, " t"]]:
    """Calls `write(tokens [b s], lengths [b]) -> tokens [b t]` on prompts of like length together.

    Results come in the order of the prompts. Longest first and padded to a multiple of 16, batches
    have few shapes and next to no padding; the last one is filled up, so that the program that
    serves it is there already.
    """
    results: list[Any] = [None] * len(prompts)
    order = np.argsort([-len(prompt) for prompt in prompts], kind="stable")
    size = min(batch_size, len(prompts))
    for at in range(0, len(order), batch_size):
        numbers = order[at : at + batch_size].tolist()
        rows = [prompts[i] for i in numbers]
        written = write(*pad_prompts(rows + rows[-1:] * (size - len(rows))))
        for i, row in zip(numbers, np.asarray(written), strict=False):
            results[i] = row
    return results


def row_keys(key: Key, b: int) -> Key:
    """Derives one key a row; row i's depends on the key and on i alone, not on b."""
    return jax.vmap(lambda i: derive(key, i))(jnp.arange(b))


def prefill(
    step: Step, carry: PyTree, prompts: Int[Array, "b s"], lengths: Int[Array, " b"]
) -> tuple[PyTree, Float[Array, "b v"]]:
    """Reads prompts token by token: each row's carry and logits right after its own last token.

    For networks that read a whole prompt at once this is what theirs has to equal. Lengths lie in
    [1, s]; after nothing the logits are NaN.
    """
    logits = jax.eval_shape(step, carry, prompts[:, 0])[1]

    def read(state, x):
        t, tokens = x
        return choose_rows(t < lengths, step(state[0], tokens), state), None

    start = carry, jnp.full(logits.shape, jnp.nan, logits.dtype)
    return jax.lax.scan(read, start, (jnp.arange(prompts.shape[1]), prompts.T))[0]


def begin(carry: PyTree, logits: Float[Array, "b v"], keys: Key) -> Decoding:
    """Starts decoding after a prompt, from what `prefill` gave."""
    done = jnp.zeros(logits.shape[0], bool)
    return Decoding(carry, logits, keys, jnp.int32(0), done)


def advance(
    step: Step, state: Decoding, *, sampler: Sampler, size: int, stop: tuple[int, ...] = ()
) -> tuple[Decoding, Generated]:
    """Draws the next `size` tokens of every row; pure.

    A row ends with a token that is in `stop`; once all rows have ended nothing more is computed.
    """
    b = state.logits.shape[0]
    nothing = Generated(
        jnp.zeros((b, size), jnp.int32), jnp.zeros((b, size)), jnp.zeros(b, jnp.int32)
    )

    def going(x):
        n, state, _ = x
        return (n < size) & ~state.done.all()

    def draw(x):
        n, state, out = x
        keys = jax.vmap(lambda key: derive(key, state.count))(state.keys)
        logits = state.logits.astype(jnp.float32)
        tokens = jnp.where(state.done, 0, sampler(keys, logits).astype(jnp.int32))
        of_tokens = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], axis=-1)[:, 0]
        out = Generated(
            out.tokens.at[:, n].set(tokens),
            out.logprobs.at[:, n].set(jnp.where(state.done, 0, of_tokens)),
            out.lengths + ~state.done,
        )
        done = state.done | jnp.isin(tokens, jnp.array(stop, jnp.int32))
        state = Decoding(*step(state.carry, tokens), state.keys, state.count + 1, done)
        return n + 1, state, out

    _, state, out = jax.lax.while_loop(going, draw, (jnp.int32(0), state, nothing))
    return state, out


@partial(jax.jit, static_argnames=("sampler", "limit", "stop"))
def generate(
    step: Step,
    carry: PyTree,
    prompts: Int[Array, "b s"],
    lengths: Int[Array, " b"],
    keys: Key,
    *,
    read: Reader | None = None,
    sampler: Sampler,
    limit: int,
    stop: tuple[int, ...] = (),
) -> Generated:
    """Continues a ragged batch of prompts by at most `limit` tokens each, in one compiled call.

    >>> step = jax.tree_util.Partial(model.step, params)  # doctest: +SKIP
    >>> tokens, lengths = pad_prompts([tokenizer.encode("def ")])  # doctest: +SKIP
    >>> generate(step, carry, tokens, lengths, row_keys(key, 1), sampler=greedy, limit=100)

    Args:
      step: a `jax.tree_util.Partial`, whose parameters thus are arguments of the program; a plain
        closure would make them constants in it.
      carry: the network's carry before the first token.
      prompts: left aligned.
      lengths: how much of each row is prompt, at least 1.
      keys: one a row, as `row_keys` makes them.
      read: what reads the prompts at once, a `jax.tree_util.Partial` too; token by token
        (`prefill`) if not given.
      sampler: `greedy`, or a `Sample`; see `jaxdl.sampling`.
      limit: most tokens to draw a row.
      stop: tokens that end a row.
    """
    read = partial(prefill, step) if read is None else read
    state = begin(*read(carry, prompts, lengths), keys)
    return advance(step, state, sampler=sampler, size=limit, stop=stop)[1]


def stream(
    step: Step,
    state: Decoding,
    *,
    sampler: Sampler,
    limit: int,
    stop: tuple[int, ...] = (),
    chunk: int = 16,
) -> Iterator[Generated]:
    """Yields what `generate` would return, as NumPy arrays, in pieces of `chunk` tokens.

    Pieces are compiled once, and end with the last row. Of the state, see `begin`; `step` is a
    `jax.tree_util.Partial`, as for `generate`.
    """
    for drawn in range(0, limit, chunk):
        state, piece = _advance(step, state, sampler=sampler, size=chunk, stop=stop)
        tokens, logprobs, lengths = jax.device_get(piece)
        here = min(chunk, limit - drawn)
        yield Generated(tokens[:, :here], logprobs[:, :here], np.minimum(lengths, here))
        if np.all(jax.device_get(state.done)):
            return


_advance = jax.jit(advance, static_argnames=("sampler", "size", "stop"))
