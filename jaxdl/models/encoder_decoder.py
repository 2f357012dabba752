"""A transformer that reads one sequence and writes another (Vaswani et al. 2017, 1706.03762).

Sinusoidal positions, and one embedding for both sides and the output (section 3.4; Press and Wolf
2017, arXiv:1608.05859). Blocks are pre-normalised (Xiong et al. 2020, arXiv:2002.04745) unless
`post_norm`, which is as the paper has it. Either way a normalisation follows the last block of a
side, as in `torch.nn.Transformer`.

Rows may be packed: segments 1, 2, ... tell which tokens belong together, 0 is padding. Attention
stays within a segment and positions begin anew in each, so a packed row gives what its sequences
give one by one. Without segments a row is one sequence, and its zeros are padding.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxdl.layers.attention import KeysValues, causal, same_segment
from jaxdl.layers.block import Block, Memories, Stack, make_norm
from jaxdl.layers.dropout import Dropout
from jaxdl.layers.embed import Embed, places, sinusoids
from jaxdl.types import Params


class DecoderCarry(NamedTuple):
    """What a decoder carries from token to token; every leaf has the leading axis b."""

    own: Memories  # of each layer, of the tokens so far, in `limit` places
    source: Memories  # of each layer, of the source
    source_mask: Bool[Array, "b s"]
    count: Int[Array, " b"]  # tokens so far


class EncoderDecoder(nn.Module):
    """An encoder, and a decoder that attends to what the encoder made of the source."""

    vocabulary: int
    width: int = 128
    layers: int = 2  # on either side
    heads: int = 4
    hidden: int | None = None  # units of the MLPs, four times the width if not given
    post_norm: bool = False
    dropout: float = 0.1  # of the embeddings, and of what each part of a block adds
    scan: bool = False  # see `jaxdl.layers.block.Stack`, as for `remat`
    remat: bool = False
    dtype: DTypeLike | None = None  # of all layers, and of logits before they become float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the layers."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        scale = nn.initializers.normal(self.width**-0.5)
        self.embed = Embed(self.vocabulary, self.width, embedding_init=scale, **dtypes)
        hidden, norm = self.hidden or 4 * self.width, partial(make_norm, "layer", **dtypes)
        block = partial(
            Block, self.width, self.heads, hidden, post_norm=self.post_norm, dropout=self.dropout,
            **dtypes,
        )  # fmt: skip
        self.encoder, self.decoder = (
            Stack(self.layers, partial(block, across=across), norm, self.scan, self.remat)
            for across in (False, True)
        )
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
        memory = self.decoder.remember(self.encode(source, heard, train=train))
        x = self._embed(tokens, places(said), train=train)
        mask = "causal"
        if segments is not None:
            mask = causal(x.shape[1]) & same_segment(segments, segments)
        across = same_segment(said, heard)
        x, _ = self.decoder(x, mask, sources=memory, source_mask=across, train=train)
        return self._logits(x)

    def encode(
        self, source: Int[Array, "b s"], segments: Int[Array, "b s"], *, train: bool
    ) -> Float[Array, "b s d"]:
        """Reads the source, every token in the light of its whole segment."""
        x = self._embed(source, places(segments), train=train)
        return self.encoder(x, same_segment(segments, segments), train=train)[0]

    def read(self, source: Int[Array, "b s"], limit: int) -> DecoderCarry:
        """Makes the carry before the first of at most `limit` tokens."""
        memory = self.encode(source, (source > 0).astype(jnp.int32), train=False)
        sources = self.decoder.remember(memory)
        shape = len(source), limit, *sources[0].keys.shape[2:]
        empty = KeysValues(*(jnp.zeros(shape, memory.dtype) for _ in range(2)))
        count = jnp.zeros(len(source), jnp.int32)
        return DecoderCarry((empty,) * self.layers, sources, source > 0, count)

    def write(
        self, carry: DecoderCarry, tokens: Int[Array, " b"]
    ) -> tuple[DecoderCarry, Float[Array, "b v"]]:
        """Reads one token a row; past the carry's limit logits are NaN."""
        limit = carry.own[0].keys.shape[1]
        x = self._embed(tokens[:, None], carry.count[:, None], train=False)
        mask = (jnp.arange(limit)[None] <= carry.count[:, None])[:, None]
        x, own = self.decoder(
            x, mask, caches=carry.own, at=carry.count, sources=carry.source,
            source_mask=carry.source_mask[:, None], train=False,
        )  # fmt: skip
        logits = jnp.where((carry.count < limit)[:, None], self._logits(x)[:, 0], jnp.nan)
        return carry._replace(own=own, count=carry.count + 1), logits

    @nn.nowrap
    def carry(self, params: Params, source: Int[Array, "b s"], *, limit: int) -> DecoderCarry:
        """Reads sources, padded with 0, and returns the carry for `step`."""
        result: Any = self.apply({"params": params}, source, limit, method="read")
        return result

    @nn.nowrap
    def step(
        self, params: Params, carry: DecoderCarry, tokens: Int[Array, " b"]
    ) -> tuple[DecoderCarry, Float[Array, "b v"]]:
        """Reads one token a row: with the parameters bound, a `Step` for `jaxdl.decode`."""
        result: Any = self.apply({"params": params}, carry, tokens, method="write")
        return result

    def _embed(
        self, tokens: Int[Array, "b t"], positions: Int[Array, "b t"], *, train: bool
    ) -> Float[Array, "b t d"]:
        x = self.embed(tokens) * self.width**0.5
        return self.drop(x + sinusoids(positions, self.width).astype(x.dtype), train=train)

    def _logits(self, x: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        return self.embed.attend(x).astype(jnp.float32)
