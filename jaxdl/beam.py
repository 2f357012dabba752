"""Beam search: the most probable sequences that a few best beginnings lead to.

It takes any step (see `jaxdl.decode`) and the carry before the first token. An encoder-decoder's is
of its source. A causal language model's is of a prompt but for its last token, with which the
search begins:

>>> tokens, lengths = pad_prompts([tokenizer.encode("def ")])  # doctest: +SKIP
>>> carry, _ = model.read(params, model.initial_carry(1), tokens, lengths - 1)  # doctest: +SKIP
>>> last = jnp.take_along_axis(tokens, lengths[:, None] - 1, axis=1)[:, 0]  # doctest: +SKIP
>>> step = jax.tree_util.Partial(model.step, params)  # doctest: +SKIP
>>> beam_search(step, carry, last, beams=4, limit=100, stop=end)  # doctest: +SKIP
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdl.types import PyTree, Step

ALPHA = 0.6  # of the length penalty, as in Vaswani et al. 2017, section 6.1, arXiv:1706.03762


class Beams(NamedTuple):
    """The `beams` best sequences n of each row, best first; after an end there are zeros.

    An end counts in `lengths`. Scores are log-probabilities in nats over the length penalty; that
    of an empty place, for which there were too few sequences, is -inf.
    """

    tokens: Int[Array, "b n t"]
    scores: Float[Array, "b n"]
    lengths: Int[Array, "b n"]


class _Search(NamedTuple):
    """Sequences so far, in no order; the carry has b n rows."""

    carry: PyTree
    tokens: Int[Array, "b n t"]
    last: Int[Array, "b n"]
    logprobs: Float[Array, "b n"]
    lengths: Int[Array, "b n"]
    ended: Bool[Array, "b n"]


def length_penalty(lengths: Int[Array, "*b"], alpha: float) -> Float[Array, "*b"]:
    """Computes ((5 + length) / 6)^alpha (Wu et al. 2016, equation 14, arXiv:1609.08144)."""
    return ((5 + lengths) / 6) ** alpha


@functools.partial(jax.jit, static_argnames=("beams", "limit", "stop", "alpha"))
def beam_search(
    step: Step,
    carry: PyTree,
    first: Int[Array, " b"],
    *,
    beams: int,
    limit: int,
    stop: int,
    alpha: float = ALPHA,
    limits: Int[Array, " b"] | None = None,
) -> Beams:
    """Searches for what is most probably written after `first`, in one compiled call.

    At each token the best continuations of a row's live beginnings take the places that are left.
    What has ended keeps its place, so a row is done when all of its places have ended. With one
    beam that is greedy decoding, whatever `alpha`; rows do not depend on each other.

    Args:
      step: a `jax.tree_util.Partial` with the parameters, as for `jaxdl.decode.generate`.
      carry: before the first token; every leaf has the leading axis b.
      first: the token that begins each row; it is not returned.
      beams: sequences to follow a row.
      limit: most tokens a row, its end counted. Where the carry has room for fewer, logits, and so
        scores, are NaN (`EncoderDecoder`), unless the step makes room (`TransformerLM`).
      stop: the token that ends a row.
      alpha: of the length penalty; 0 ranks by log-probability, which favours short sequences.
      limits: most tokens of each row, from 1 to `limit`, where they differ; they end the row.
    """
    b, rows = len(first), jnp.arange(len(first))[:, None]
    limits = jnp.full(b, limit) if limits is None else limits
    start = _Search(
        jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), carry),
        jnp.zeros((b, beams, limit), jnp.int32),
        jnp.tile(first.astype(jnp.int32)[:, None], (1, beams)),
        # All places begin alike: all but one would only repeat it.
        jnp.tile(jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)[None], (b, 1)),
        jnp.zeros((b, beams), jnp.int32),
        jnp.zeros((b, beams), bool),
    )

    def extend(x: tuple[Array, _Search]) -> tuple[Array, _Search]:
        n, s = x
        carry, logits = step(s.carry, s.last.reshape(-1))
        logprobs = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(b, beams, -1)
        v = logprobs.shape[-1]
        # An ended sequence goes on in one way, which nothing alive can drive out.
        ended = jnp.where(jnp.arange(v) == 0, jnp.inf, -jnp.inf)[None, None]
        rank = jnp.where(s.ended[:, :, None], ended, s.logprobs[:, :, None] + logprobs)
        rank, index = jax.lax.top_k(rank.reshape(b, -1), beams)
        parent, token = index // v, index % v
        was = rank == jnp.inf
        token = jnp.where(was, 0, token)
        flat = (rows * beams + parent).reshape(-1)
        return n + 1, _Search(
            jax.tree.map(lambda x: x[flat], carry),
            s.tokens[rows, parent].at[:, :, n].set(token),
            token,
            jnp.where(was, s.logprobs[rows, parent], rank),
            s.lengths[rows, parent] + ~was,
            # Where there were too few continuations, a place is empty; it may be taken later.
            was | ((token == stop) & (rank > -jnp.inf)) | (n + 1 >= limits)[:, None],
        )

    going = lambda x: (x[0] < limit) & ~x[1].ended.all()  # noqa: E731
    _, s = jax.lax.while_loop(going, extend, (jnp.int32(0), start))
    scores = s.logprobs / length_penalty(s.lengths, alpha)
    scores, order = jax.lax.top_k(scores, beams)
    return Beams(s.tokens[rows, order], scores, s.lengths[rows, order])
