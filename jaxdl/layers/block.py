"""The block that every transformer is a stack of: attention, then an MLP, each beside a path past.

    pre-normalised:    x <- x + f(norm(x))        (Xiong et al. 2020, arXiv:2002.04745)
    post-normalised:   x <- norm(x + f(x))        (Vaswani et al. 2017, arXiv:1706.03762)

f is attention of the tokens to themselves, in a decoder of another sequence then attention to
that, and at last the MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxdl.layers.activations import gelu_tanh, silu
from jaxdl.layers.attention import Attention, KeysValues
from jaxdl.layers.dense import Dense
from jaxdl.layers.dropout import Dropout
from jaxdl.layers.norm import LayerNorm, RMSNorm
from jaxdl.types import PyTree

Memories = tuple[KeysValues, ...]  # one a block
Norm = Literal["layer", "rms"]
Hidden = Literal["relu", "gelu", "swiglu"]
HIDDEN = {"relu": jax.nn.relu, "gelu": gelu_tanh, "swiglu": silu}  # of the last, of its gate


class FeedForward(nn.Module):
    """The MLP: up, an activation, down.

    `gelu` is the approximation by tanh (Hendrycks and Gimpel 2016, arXiv:1606.08415), as GPT-2 has
    it; `swiglu` is silu(gate) up (Shazeer 2020, arXiv:2002.05202).
    """

    width: int
    hidden: int
    activation: Hidden = "relu"
    bias: bool = True
    kernel_init: Initializer = nn.linear.default_kernel_init
    out_kernel_init: Initializer = nn.linear.default_kernel_init
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Computes the MLP of each token by itself."""
        if self.activation not in HIDDEN:
            raise ValueError(f"no activation {self.activation!r}; there are {', '.join(HIDDEN)}")
        activation = HIDDEN[self.activation]
        shared = {"use_bias": self.bias, "dtype": self.dtype, "param_dtype": self.param_dtype}
        y = Dense(self.hidden, kernel_init=self.kernel_init, name="up", **shared)(x)
        if self.activation == "swiglu":
            gate = Dense(self.hidden, kernel_init=self.kernel_init, name="gate", **shared)(x)
            y = activation(gate) * y
        else:
            y = activation(y)
        return Dense(self.width, kernel_init=self.out_kernel_init, name="down", **shared)(y)


class Block(nn.Module):
    """One block; see `jaxdl.layers.attention` for what attention takes.

    `dropout` acts on what each part adds (section 5.4 of the paper), `weights_dropout` on the
    weights of attention to itself.
    """

    width: int
    heads: int
    hidden: int  # units of the MLP
    kv_heads: int | None = None
    norm: Norm = "layer"
    post_norm: bool = False
    activation: Hidden = "relu"
    bias: bool = True
    normalise: bool = False  # queries and keys
    rotary: bool = False
    across: bool = False  # has attention to another sequence
    dropout: float = 0.0
    weights_dropout: float = 0.0
    kernel_init: Initializer = nn.linear.default_kernel_init
    out_kernel_init: Initializer = nn.linear.default_kernel_init
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the layers."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        inits = {"kernel_init": self.kernel_init, "out_kernel_init": self.out_kernel_init}
        shared = {"bias": self.bias, **inits, **dtypes}
        norm = partial(make_norm, self.norm, bias=self.bias, **dtypes)
        self.attention = Attention(
            self.width, self.heads, kv_heads=self.kv_heads, normalise=self.normalise,
            rotary=self.rotary, dropout=self.weights_dropout, **shared,
        )  # fmt: skip
        self.attention_norm = norm()
        if self.across:
            self.cross = Attention(self.width, self.heads, **shared)
            self.cross_norm = norm()
        self.mlp = FeedForward(self.width, self.hidden, self.activation, **shared)
        self.mlp_norm = norm()
        self.drop = Dropout(self.dropout)

    def remember(self, source: Float[Array, "b s d"]) -> KeysValues:
        """Makes keys and values of another sequence, once for all tokens."""
        return self.cross.remember(source)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        mask: Bool[Array, "#b t _"] | Literal["causal"] | None,
        *,
        positions: Int[Array, "#b t"] | None = None,
        cache: KeysValues | None = None,
        at: Int[Array, " b"] | None = None,
        source: KeysValues | None = None,
        source_mask: Bool[Array, "#b t s"] | None = None,
        train: bool,
    ) -> tuple[Float[Array, "b t d"], KeysValues | None]:
        """Returns its output, and the cache with the new tokens in it, where there is one.

        With a cache the tokens are written into their row's places from `at` on, and look through
        as much of it as the mask, then (b, t, places), lets them.
        """

        def attention(y: Array) -> Array:
            nonlocal cache
            memory = self.attention.remember(y, positions)
            if cache is not None and at is not None:
                cache = memory = write(cache, memory, at)
            return self.attention(y, memory, mask, positions, train=train)

        x = self._past(self.attention_norm, attention, x, train=train)
        if self.across:
            if source is None or source_mask is None:
                raise ValueError("a block with attention across was given nothing to attend to")
            across = lambda y: self.cross(y, source, source_mask, train=train)  # noqa: E731
            x = self._past(self.cross_norm, across, x, train=train)
        return self._past(self.mlp_norm, self.mlp, x, train=train), cache

    def _past(
        self, norm: nn.Module, part: Callable[[Array], Array], x: Array, *, train: bool
    ) -> Array:
        if self.post_norm:
            return norm(x + self.drop(part(x), train=train))
        return x + self.drop(part(norm(x)), train=train)


class Stack(nn.Module):
    """Blocks on top of each other and, where it is given, a normalisation on top of them.

    `scan` compiles one block for all, whose parameters are stacked: the time to compile no longer
    grows with the layers. It is the same function of the same parameters; but from the same seed
    they start otherwise, and dropout draws otherwise. `remat` keeps each block's input alone and
    computes the rest again for the gradient, and changes no number.
    """

    layers: int
    block: Callable[[], Block]
    final_norm: Callable[[], nn.Module] | None = None
    scan: bool = False
    remat: bool = False

    def setup(self):
        """Makes the blocks."""
        self.blocks = self.block() if self.scan else [self.block() for _ in range(self.layers)]
        if self.final_norm is not None:
            self.norm = self.final_norm()

    def __call__(
        self,
        x: Float[Array, "b t d"],
        mask: Bool[Array, "#b t _"] | Literal["causal"] | None,
        *,
        positions: Int[Array, "#b t"] | None = None,
        caches: Memories | None = None,
        at: Int[Array, " b"] | None = None,
        sources: Memories | None = None,
        source_mask: Bool[Array, "#b t s"] | None = None,
        train: bool,
    ) -> tuple[Float[Array, "b t d"], Memories | None]:
        """Returns the output, and the caches, one a block, with the new tokens; see `Block`."""

        def one(block: Block, x: Array, memory: tuple) -> tuple[Array, KeysValues | None]:
            cache, source = memory
            return block(
                x, mask, positions=positions, cache=cache, at=at, source=source,
                source_mask=source_mask, train=train,
            )  # fmt: skip

        if self.remat:
            one = nn.remat(one, prevent_cse=not self.scan)
        nothing = (None,) * self.layers
        memories = list(zip(caches or nothing, sources or nothing, strict=True))
        x, written = self._through(one, x, memories)
        y = x if self.final_norm is None else self.norm(x)
        return y, None if caches is None else written

    def remember(self, source: Float[Array, "b s d"]) -> Memories:
        """Makes each block's keys and values of another sequence, once for all tokens."""

        def one(block: Block, x: Array, _: None) -> tuple[Array, KeysValues]:
            return x, block.remember(x)

        return self._through(one, source, [None] * self.layers)[1]

    def _through(self, one: Callable, x: Array, memories: Sequence) -> tuple[Array, Any]:
        """Hands x from block to block; returns it, and what each block returns beside it."""
        if not self.scan:
            results, blocks = [], cast(list[Block], self.blocks)
            for block, memory in zip(blocks, memories, strict=True):
                x, result = one(block, x, memory)
                results.append(result)
            return x, tuple(results)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *memories)
        through = nn.scan(
            one, variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True}, length=self.layers,
        )  # fmt: skip
        x, results = through(self.blocks, x, stacked)
        return x, unstack(results, self.layers)


def unstack(tree: PyTree, layers: int) -> tuple[PyTree, ...]:
    """Takes apart what is stacked along the first axis, such as a scanned stack's parameters."""
    take = lambda i: jax.tree.map(lambda leaf: leaf[i], tree)  # noqa: E731
    return tuple(take(i) for i in range(layers))


def make_norm(norm: Norm, *, bias: bool = True, **dtypes: Any) -> nn.Module:
    """Makes layer normalisation (Ba et al. 2016) or RMS normalisation (Zhang, Sennrich 2019).

    Raises ValueError for any other.
    """
    if norm not in get_args(Norm):
        raise ValueError(f"no normalisation {norm!r}; there are {', '.join(get_args(Norm))}")
    if norm == "rms":
        return RMSNorm(epsilon=1e-6, **dtypes)
    return LayerNorm(epsilon=1e-5, use_bias=bias, **dtypes)


def write(cache: KeysValues, new: KeysValues, at: Int[Array, " b"]) -> KeysValues:
    """Writes t new keys and values a row into its places from `at` on; past the end none."""
    rows = jnp.arange(len(at))[:, None]
    places = at[:, None] + jnp.arange(new.keys.shape[1])[None]
    return KeysValues(*(
        old.at[rows, places].set(more.astype(old.dtype), mode="drop")
        for old, more in zip(cache, new, strict=True)
    ))  # fmt: skip
