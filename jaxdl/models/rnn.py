"""Recurrent networks on tokens: a language model, a classifier and a tagger."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxdl.layers import Dropout, Embed, Recurrent
from jaxdl.layers.recurrent import CellName, hidden
from jaxdl.layers.recurrent_stack import StackCarry
from jaxdl.types import Params


class RecurrentLM(nn.Module):
    """A recurrent language model: embedding, recurrent layers, logits of the next token.

    Dropout acts on the embeddings, between the layers, and before the output (Zaremba et al. 2014,
    arXiv:1409.2329). `tied` takes the embedding for the output's kernel too (Press and Wolf 2017,
    arXiv:1608.05859), beside a bias of the output's own.
    """

    vocabulary: int
    width: int = 512  # of the embedding and of each layer
    layers: int = 2
    cell: CellName = "lstm"
    dropout: float = 0.0
    variational: bool = False  # one dropout mask for all times
    normalise: bool = False
    tied: bool = False
    chunk: int | None = None  # rematerialise chunks of so many steps
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "b t"],
        carry: StackCarry | None = None,
        *,
        lengths: Int[Array, " b"] | None = None,
        train: bool,
    ) -> tuple[Float[Array, "b t v"], StackCarry]:
        """Returns logits, float32, of the token after each, and the carry after the last one.

        Logits at t depend on tokens up to t; past a row's length, if given, they mean nothing.
        While training it draws from the rng "dropout".
        """
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        embed = Embed(self.vocabulary, self.width, name="embed", **dtypes)
        drop = Dropout(self.dropout, (1,) if self.variational else ())
        x, embedding = _embed(embed, drop, tokens, train=train)
        stack = _stack(self, bidirectional=False)
        x, carry = stack(x, carry, lengths=lengths, embedding=embedding, train=train)
        x = drop(x, train=train)
        if not self.tied:
            logits = nn.Dense(self.vocabulary, name="output", **dtypes)(x)
        else:
            zeros, shape = nn.initializers.zeros, (self.vocabulary,)
            bias = self.param("output_bias", zeros, shape, self.param_dtype)
            logits = embed.attend(x) + bias.astype(x.dtype)[None, None]
        return logits.astype(jnp.float32), carry

    @property
    def limit(self) -> None:
        """Most tokens that it sees at once: there is no limit."""

    @nn.nowrap
    def initial_carry(self, b: int) -> StackCarry:
        """Returns the carry before the first token: zeros, each leaf [b h]."""
        return _stack(self, bidirectional=False).initial_carry(b)

    @nn.nowrap
    def extend(
        self, params: Params, carry: StackCarry, tokens: Int[Array, "b t"]
    ) -> tuple[StackCarry, Float[Array, "b t v"]]:
        """Reads t more tokens a row: the carry, and logits after each."""
        result: Any = self.apply({"params": params}, tokens, carry, train=False)
        logits, carry = result
        return carry, logits

    @nn.nowrap
    def step(
        self, params: Params, carry: StackCarry, tokens: Int[Array, " b"]
    ) -> tuple[StackCarry, Float[Array, "b v"]]:
        """Reads one token a row: with the parameters bound, a `Step` for `jaxdl.decode`."""
        carry, logits = self.extend(params, carry, tokens[:, None])
        return carry, logits[:, 0]

    @nn.nowrap
    def read(
        self,
        params: Params,
        carry: StackCarry,
        tokens: Int[Array, "b s"],
        lengths: Int[Array, " b"],
    ) -> tuple[StackCarry, Float[Array, "b v"]]:
        """Reads a ragged batch at once, as `step` would token by token: carry, and last logits."""
        result: Any = self.apply({"params": params}, tokens, carry, lengths=lengths, train=False)
        logits, carry = result
        return carry, jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0]


class SequenceReader(nn.Module):
    """What a tagger and a classifier share: embedding, bidirectional layers, output."""

    classes: int
    vocabulary: int
    width: int = 256  # of the embedding, and of each direction of each layer
    layers: int = 1
    cell: CellName = "lstm"
    dropout: float = 0.0
    variational: bool = False
    normalise: bool = False
    chunk: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def read(
        self, tokens: Int[Array, "b t"], lengths: Int[Array, " b"], *, train: bool
    ) -> tuple[Float[Array, "b t d"], StackCarry]:
        """Returns the last layer's outputs, of both directions, and all last carries."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        embed = Embed(self.vocabulary, self.width, name="embed", **dtypes)
        drop = Dropout(self.dropout, (1,) if self.variational else ())
        x, embedding = _embed(embed, drop, tokens, train=train)
        stack = _stack(self, bidirectional=True)
        return stack(x, lengths=lengths, embedding=embedding, train=train)

    def classify(self, x: Float[Array, "*b d"], *, train: bool) -> Float[Array, "*b v"]:
        """Computes the logits of the classes, float32."""
        x = Dropout(self.dropout)(x, train=train)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return nn.Dense(self.classes, name="output", **dtypes)(x).astype(jnp.float32)


class SequenceTagger(SequenceReader):
    """A bidirectional network that names every token of a sequence."""

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b t"], lengths: Int[Array, " b"], *, train: bool
    ) -> Float[Array, "b t v"]:
        """Computes logits, float32; past a row's length they mean nothing, to be masked.

        While training it draws from the rng "dropout".
        """
        outputs, _ = self.read(tokens, lengths, train=train)
        return self.classify(outputs, train=train)


class SequenceClassifier(SequenceReader):
    """A bidirectional network that names a whole sequence, from the last carry of each direction.

    That of the forward direction has read up to the last token, that of the backward direction
    down to the first, so each has seen all of the sequence.
    """

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b t"], lengths: Int[Array, " b"], *, train: bool
    ) -> Float[Array, "b v"]:
        """Computes logits, float32; while training it draws from the rng "dropout"."""
        _, carry = self.read(tokens, lengths, train=train)
        last = [hidden(direction) for direction in carry[-1]]
        return self.classify(jnp.concatenate(last, axis=-1), train=train)


def _embed(
    embed: Embed, drop: Dropout, tokens: Int[Array, "b t"], *, train: bool
) -> tuple[Float[Array, "b t d"], Float[Array, "d e"] | None]:
    """Looks the embeddings up; or returns one-hot tokens, and what they are to be multiplied by.

    The latter is for symbols that are few, and where nothing is dropped of their embeddings; a
    token that there is not is all NaN either way.
    """
    v = embed.num_embeddings
    if (train and drop.rate) or v > min(embed.features, tokens.size):
        return drop(embed(tokens), train=train), None
    known = (tokens >= 0) & (tokens < v)
    chosen = tokens[..., None] == jnp.arange(v)[None, None]
    table = embed.embedding
    return jnp.where(known[..., None], chosen, jnp.nan).astype(table.dtype), table


def _stack(model: RecurrentLM | SequenceReader, *, bidirectional: bool) -> Recurrent:
    return Recurrent(
        model.cell,
        model.width,
        layers=model.layers,
        bidirectional=bidirectional,
        dropout=model.dropout,
        variational=model.variational,
        normalise=model.normalise,
        chunk=model.chunk,
        dtype=model.dtype,
        param_dtype=model.param_dtype,
        name="recurrent",
    )
