"""A transformer that reads one sequence and writes another (Vaswani et al. 2017, 1706.03762).

Pre-normalised blocks (Xiong et al. 2020, arXiv:2002.04745), sinusoidal positions, and one embedding
for both sides and the output (Press and Wolf 2017, arXiv:1608.05859).

Rows may be packed: segments 1, 2, ... tell which tokens belong together, 0 is padding. Attention
stays within a segment and positions begin anew in each, so a packed row gives what its sequences
give one by one. Without segments a row is one sequence, and its zeros are padding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxdl.layers.dropout import Dropout
from jaxdl.layers.packed_attention import Attention, KeysValues, places, sinusoids
from jaxdl.types import Params


class TranslatorCarry(NamedTuple):
    """What a decoder carries from token to token; every leaf has the leading axis b."""

    own: tuple[KeysValues, ...]  # of each layer, of the tokens so far, in `limit` places
    source: tuple[KeysValues, ...]  # of each layer, of the source
    source_mask: Bool[Array, "b s"]
    count: Int[Array, " b"]  # tokens so far


class Block(nn.Module):
    """Attention to itself, in a decoder to the source too, then an MLP with ReLU."""

    heads: int
    width: int
    dropout: float
    decoder: bool
    dtypes: dict[str, Any]

    def setup(self):
        """Makes the layers."""
        self.attention = Attention(self.heads, self.width, self.dtypes)
        self.norms = [nn.LayerNorm(**self.dtypes) for _ in range(3 if self.decoder else 2)]
        if self.decoder:
            self.across = Attention(self.heads, self.width, self.dtypes)
        self.up = nn.Dense(4 * self.width, **self.dtypes)
        self.down = nn.Dense(self.width, **self.dtypes)
        self.drop = Dropout(self.dropout)

    def remember(self, source: Float[Array, "b s d"]) -> KeysValues:
        """Makes keys and values of the encoder's output, once for all tokens."""
        return self.across.remember(source)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        mask: Bool[Array, "b t _"],
        source: KeysValues | None = None,
        source_mask: Bool[Array, "b t s"] | None = None,
        *,
        cache: KeysValues | None = None,
        at: Int[Array, " b"] | None = None,
        train: bool,
    ) -> tuple[Float[Array, "b t d"], KeysValues]:
        """Returns its output, and the keys and values that it has looked through.

        With a cache, x is one token a row, which is written into its row's place `at`.
        """
        y = self.norms[0](x)
        own = self.attention.remember(y)
        if cache is not None:
            rows = jnp.arange(len(x))
            own = KeysValues(*(c.at[rows, at].set(new[:, 0]) for c, new in zip(cache, own)))  # noqa: B905
        x = x + self.drop(self.attention(y, own, mask), train=train)
        if source is not None and source_mask is not None:
            y = self.across(self.norms[1](x), source, source_mask)
            x = x + self.drop(y, train=train)
        y = self.drop(nn.relu(self.up(self.norms[-1](x))), train=train)
        return x + self.drop(self.down(y), train=train), own


class Translator(nn.Module):
    """An encoder, and a decoder that attends to what the encoder made of the source."""

    vocabulary: int
    width: int = 128
    layers: int = 2  # on either side
    heads: int = 4
    dropout: float = 0.1
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the layers."""
        if self.width % (2 * self.heads):
            raise ValueError(f"a width of {self.width} does not split over {self.heads} heads")
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        scale = nn.initializers.normal(self.width**-0.5)
        self.embed = nn.Embed(self.vocabulary, self.width, embedding_init=scale, **dtypes)
        shared = {"heads": self.heads, "width": self.width, "dropout": self.dropout}
        self.encoder, self.decoder = (
            [Block(decoder=side, dtypes=dtypes, **shared) for _ in range(self.layers)]
            for side in (False, True)
        )
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(**dtypes), nn.LayerNorm(**dtypes)
        self.drop = Dropout(self.dropout)

    def __call__(
        self,
        source: Int[Array, "b s"],
        tokens: Int[Array, "b t"],
        source_segments: Int[Array, "b s"] | None = None,
        segments: Int[Array, "b t"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "b t v"]:
        """Returns logits, float32, of the token after each: of the source, and tokens up to it.

        While training it draws from the rng "dropout".
        """
        heard = (source > 0).astype(jnp.int32) if source_segments is None else source_segments
        said = jnp.ones_like(tokens) if segments is None else segments
        memory = self.encode(source, heard, train=train)
        x = self._embed(tokens, places(said), train=train)
        t = jnp.arange(tokens.shape[1])
        mask = (said[:, :, None] == said[:, None]) & (t[:, None] >= t[None])[None]
        across = said[:, :, None] == heard[:, None]
        for block in self.decoder:
            x, _ = block(x, mask, block.remember(memory), across, train=train)
        return self._logits(x)

    def encode(
        self, source: Int[Array, "b s"], segments: Int[Array, "b s"], *, train: bool
    ) -> Float[Array, "b s d"]:
        """Reads the source, every token in the light of its whole segment."""
        x = self._embed(source, places(segments), train=train)
        mask = segments[:, :, None] == segments[:, None]
        for block in self.encoder:
            x, _ = block(x, mask, train=train)
        return self.encoder_norm(x)

    def read(self, source: Int[Array, "b s"], limit: int) -> TranslatorCarry:
        """Makes the carry before the first of at most `limit` tokens."""
        memory = self.encode(source, (source > 0).astype(jnp.int32), train=False)
        kv = tuple(block.remember(memory) for block in self.decoder)
        shape = len(source), limit, *kv[0].keys.shape[2:]
        empty = KeysValues(*(jnp.zeros(shape, memory.dtype) for _ in range(2)))
        count = jnp.zeros(len(source), jnp.int32)
        return TranslatorCarry((empty,) * self.layers, kv, source > 0, count)

    def write(
        self, carry: TranslatorCarry, tokens: Int[Array, " b"]
    ) -> tuple[TranslatorCarry, Float[Array, "b v"]]:
        """Reads one token a row; past the carry's limit logits are NaN."""
        limit = carry.own[0].keys.shape[1]
        x = self._embed(tokens[:, None], carry.count[:, None], train=False)
        mask = (jnp.arange(limit)[None] <= carry.count[:, None])[:, None]
        own = []
        for block, cache, source in zip(self.decoder, carry.own, carry.source, strict=True):
            x, kv = block(
                x, mask, source, carry.source_mask[:, None], cache=cache, at=carry.count,
                train=False,
            )  # fmt: skip
            own.append(kv)
        logits = jnp.where((carry.count < limit)[:, None], self._logits(x)[:, 0], jnp.nan)
        return carry._replace(own=tuple(own), count=carry.count + 1), logits

    @nn.nowrap
    def carry(self, params: Params, source: Int[Array, "b s"], *, limit: int) -> TranslatorCarry:
        """Reads sources, padded with 0, and returns the carry for `step`."""
        result: Any = self.apply({"params": params}, source, limit, method="read")
        return result

    @nn.nowrap
    def step(
        self, params: Params, carry: TranslatorCarry, tokens: Int[Array, " b"]
    ) -> tuple[TranslatorCarry, Float[Array, "b v"]]:
        """Reads one token a row: with the parameters bound, a `Step` for `jaxdl.decode`."""
        result: Any = self.apply({"params": params}, carry, tokens, method="write")
        return result

    def _embed(
        self, tokens: Int[Array, "b t"], positions: Int[Array, "b t"], *, train: bool
    ) -> Float[Array, "b t d"]:
        x = self.embed(tokens) * self.width**0.5
        return self.drop(x + sinusoids(positions, self.width).astype(x.dtype), train=train)

    def _logits(self, x: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        return self.embed.attend(self.decoder_norm(x)).astype(jnp.float32)
