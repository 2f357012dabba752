"""The causal language model: a stack of blocks that predicts each token from those before it."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxdl.layers.attention import KeysValues, causal, memory_heads, same_segment
from jaxdl.layers.block import Block, Memories, Stack, make_norm
from jaxdl.layers.dropout import Dropout
from jaxdl.layers.embed import Embed, places
from jaxdl.rows import choose_rows
from jaxdl.types import Params

Style = Literal["gpt2", "modern"]


class Cache(NamedTuple):
    """What the model carries from token to token: all that it has seen; rows lead every leaf."""

    blocks: Memories  # of each block, in `limit` places
    tokens: Int[Array, "b s"]  # the same tokens themselves
    count: Int[Array, " b"]  # how many of the places are taken


class TransformerLM(nn.Module):
    """A causal language model in one of two styles, its output tied to its embedding.

    |                  | gpt2                          | modern                  |
    |------------------|-------------------------------|-------------------------|
    | positions        | learned                       | rotary                  |
    | normalisation    | layer                         | RMS                     |
    | MLP              | GELU, 4 d                     | SwiGLU, 8/3 d           |
    | biases           | yes                           | no                      |
    | queries and keys | as they are                   | RMS-normalised, by head |
    | start            | N(0, .02), and on the way out | N(0, .02), and on the   |
    |                  | of each part over sqrt(2 L)   | way out of each part 0  |

    gpt2 is GPT-2 (Radford et al. 2019), weight for weight; modern is what has lasted since, part
    by part in `jaxdl.layers.block`. Both are pre-normalised. Dropout acts on the embeddings, on
    the weights of attention, and on what each part adds.
    """

    vocabulary: int
    width: int = 128
    layers: int = 4
    heads: int = 4
    limit: int = 1024  # most tokens that it sees at once, 2 at least
    style: Style = "gpt2"
    kv_heads: int | None = None  # heads of keys and values, as many as `heads` for None
    dropout: float = 0.0
    scan: bool = False  # see `jaxdl.layers.block.Stack`, as for `remat`
    remat: bool = False
    dtype: DTypeLike | None = None  # of all layers, and of logits before they become float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the layers."""
        if self.style not in get_args(Style):
            raise ValueError(f"no style {self.style!r}; there are {', '.join(get_args(Style))}")
        if self.limit < 2:  # what is full forgets the first half of it
            raise ValueError(f"a limit is 2 tokens at least, got {self.limit}")
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        normal = nn.initializers.normal
        self.embed = Embed(self.vocabulary, self.width, embedding_init=normal(0.02), **dtypes)
        if self.style == "gpt2":
            self.positions = Embed(self.limit, self.width, embedding_init=normal(0.02), **dtypes)
            out_init = normal(0.02 / (2 * self.layers) ** 0.5)
            style = {"hidden": 4 * self.width, "activation": "gelu"}
        else:
            out_init = nn.initializers.zeros
            style = {
                "hidden": 8 * self.width // 48 * 16,  # 8/3 of the width, in sixteens
                "activation": "swiglu", "norm": "rms", "bias": False, "normalise": True,
                "rotary": True,
            }  # fmt: skip
        block = partial(
            Block, self.width, self.heads, kv_heads=self.kv_heads, dropout=self.dropout,
            weights_dropout=self.dropout, kernel_init=normal(0.02), out_kernel_init=out_init,
            **style, **dtypes,
        )  # fmt: skip
        norm = "layer" if self.style == "gpt2" else "rms"
        self.decoder = Stack(
            self.layers, block, partial(make_norm, norm, **dtypes), self.scan, self.remat
        )
        self.drop = Dropout(self.dropout)

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        carry: Cache | None = None,
        segments: Int[Array, "b t"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "b t v"], Cache | None]:
        """Returns logits, float32, of the token after each, and the cache where one is given.

        Without a cache rows begin here, and may be packed: `segments` 1, 2, ... keep apart what
        does not belong together. With one, rows go on where it ends; it has to have room for t
        more, which `extend` makes. Raises ValueError for more tokens than `limit`, and for segments
        beside a cache, whose rows are of one text each. While training it draws from the rng
        "dropout".
        """
        t = tokens.shape[1]
        if t > self.limit:
            raise ValueError(f"{t} tokens are more than the {self.limit} that the network sees")
        if carry is not None and segments is not None:
            raise ValueError("segments are for rows that begin here, not for those of a cache")
        caches, begin = (None, None) if carry is None else (carry.blocks, carry.count)
        if begin is not None:
            at = begin[:, None] + jnp.arange(t)[None]
            mask = jnp.arange(self.limit)[None, None] <= at[:, :, None]
        elif segments is not None:
            at, mask = places(segments), causal(t) & same_segment(segments, segments)
        else:
            at, mask = jnp.arange(t)[None], "causal"
        x = self.embed(tokens)
        if self.style == "gpt2":
            x = x + self.positions(jnp.minimum(at, self.limit - 1))
        x = self.drop(x, train=train)
        x, caches = self.decoder(x, mask, positions=at, caches=caches, at=begin, train=train)
        if carry is not None and caches is not None:
            rows = jnp.arange(len(tokens))[:, None]
            seen = carry.tokens.at[rows, at].set(tokens, mode="drop")
            carry = Cache(caches, seen, carry.count + t)
        return self.embed.attend(x).astype(jnp.float32), carry

    @nn.nowrap
    def initial_carry(self, b: int) -> Cache:
        """Returns the cache before the first token, with `limit` empty places a row."""
        m = memory_heads(self.heads, self.kv_heads)
        shape = b, self.limit, m, self.width // self.heads
        dtype = self.dtype or self.param_dtype
        empty = lambda: KeysValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))  # noqa: E731
        tokens, count = jnp.zeros((b, self.limit), jnp.int32), jnp.zeros(b, jnp.int32)
        return Cache(tuple(empty() for _ in range(self.layers)), tokens, count)

    @property
    def stretch(self) -> int:
        """Most tokens that `extend` takes at once."""
        return self.limit // 2

    @nn.nowrap
    def extend(
        self, params: Params, carry: Cache, tokens: Int[Array, "b t"]
    ) -> tuple[Cache, Float[Array, "b t v"]]:
        """Reads t more tokens a row, at most `stretch`: the cache, and logits after each.

        A row without room for them first forgets all but its last `stretch` tokens, which are read
        anew; so a text may be of any length, and each token is predicted from `stretch` or more.
        """
        t = tokens.shape[1]
        if t > self.stretch:
            raise ValueError(f"{t} tokens are more than the {self.stretch} that are taken at once")
        full = carry.count + t > self.limit
        make_room = lambda c: choose_rows(full, self._shortened(params, c), c)  # noqa: E731
        carry = jax.lax.cond(full.any(), make_room, lambda c: c, carry)
        result: Any = self.apply({"params": params}, tokens, carry, train=False)
        logits, carry = result
        return carry, logits

    @nn.nowrap
    def step(
        self, params: Params, carry: Cache, tokens: Int[Array, " b"]
    ) -> tuple[Cache, Float[Array, "b v"]]:
        """Reads one token a row: with the parameters bound, a `Step` for `jaxdl.decode`."""
        carry, logits = self.extend(params, carry, tokens[:, None])
        return carry, logits[:, 0]

    @nn.nowrap
    def read(
        self, params: Params, carry: Cache, tokens: Int[Array, "b s"], lengths: Int[Array, " b"]
    ) -> tuple[Cache, Float[Array, "b v"]]:
        """Reads a ragged batch at once, as `step` would token by token: cache, and last logits.

        Lengths are at most `limit`, and the cache has room for them. After nothing, a length of 0,
        the logits mean nothing.
        """
        tokens = tokens[:, : self.limit]
        result: Any = self.apply({"params": params}, tokens, carry, train=False)
        logits, after = result
        # What was padding stands behind the count: it is not seen, and is written over.
        last = jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0]
        return after._replace(count=carry.count + lengths), last

    @nn.nowrap
    def _shortened(self, params: Params, carry: Cache) -> Cache:
        """Reads the last `stretch` tokens of each row anew, as if nothing had been before."""
        rows = jnp.arange(len(carry.count))[:, None]
        begin = jnp.maximum(carry.count - self.stretch, 0)
        kept = carry.tokens[rows, begin[:, None] + jnp.arange(self.stretch)[None]]
        empty = jax.tree.map(jnp.zeros_like, carry)
        result: Any = self.apply({"params": params}, kept, empty, train=False)
        return result[1]._replace(count=carry.count - begin)
