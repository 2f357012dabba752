"""Attention (Vaswani et al. 2017, arXiv:1706.03762).

    softmax(q k^T / sqrt(k)) v

A query looks through a memory of keys and values, as far as a mask lets it. The memory may be of
the tokens themselves, of another sequence, or of all tokens so far (a cache). Rows may be packed:
segments 1, 2, ... tell which tokens belong together, and 0 is padding.

A mask is an array, true where a query sees a key. None lets each query see all keys, and "causal"
those up to its own: for these a GPU's fused attention reads no array.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxdl.layers.activations import softmax
from jaxdl.layers.dense import Dense
from jaxdl.layers.dropout import Dropout
from jaxdl.layers.embed import rotate
from jaxdl.layers.norm import RMSNorm

Mask = Bool[Array, "#b t s"] | Literal["causal"] | None


class KeysValues(NamedTuple):
    """What a query looks through, by head: m heads, of which n / m heads of queries share one."""

    keys: Float[Array, "b s m k"]
    values: Float[Array, "b s m k"]


def attend(
    queries: Float[Array, "b t n k"],
    memory: KeysValues,
    mask: Mask,
    *,
    drop: Callable[[Array], Array] = lambda weights: weights,
) -> tuple[Float[Array, "b t n k"], Float[Array, "b n t s"]]:
    """Computes softmax(q k^T / sqrt(k)) v where the mask lets q see k, and the weights.

    Scores and weights are float32, whatever the type of queries, keys and values; what the weights
    make of the values is of the values' type. Where all of a query's mask is false its weights are
    uniform, and mean nothing. With fewer heads in the memory each serves a group of queries
    (Ainslie et al. 2023, arXiv:2305.13245). `drop` is applied to the weights on their way to the
    values. Raises ValueError for a mask that is neither boolean nor named above, and for "causal"
    where t is not s.
    """
    b, t, n, k = queries.shape
    _, s, m, _ = memory.keys.shape
    # There are fewer queries than scores to scale, but in 16 bits their quotients are rounded.
    before, after = (k**0.5, 1.0) if queries.dtype == jnp.float32 else (1.0, k**0.5)
    grouped = (queries / before).reshape(b, t, m, n // m, k)
    # Heads first, and then products of plain matrices, with a group's queries in one.
    grouped = grouped.transpose(0, 2, 3, 1, 4).reshape(b, m, n // m * t, k)
    keys, values = (x.swapaxes(1, 2) for x in memory)
    scores = jnp.matmul(grouped, keys.swapaxes(2, 3), preferred_element_type=jnp.float32) / after
    scores = scores.reshape(b, n, t, s)
    seen = _mask_array(mask, t, s)
    if seen is not None:
        scores = jnp.where(seen[:, None], scores, -1e30)
    weights = softmax(scores)
    dropped = drop(weights).astype(values.dtype).reshape(b, m, n // m * t, s)
    y = (dropped @ values).reshape(b, n, t, k)
    return y.swapaxes(1, 2), weights


def fused(
    queries: Float[Array, "b t n k"],
    memory: KeysValues,
    mask: Mask,
) -> Float[Array, "b t n k"]:
    """Computes what `attend` does by cuDNN's fused attention; `fused_serves` tells of what.

    It never holds the weights, (b, n, t, s) in float32. An array for a mask it reads as a 16-bit
    number each, so that memory still grows with t s, and leaves out nothing of what that hides. It
    has no second derivative, and beside an array no batching rule (`jax.vmap`).
    """
    array, is_causal = (None, True) if isinstance(mask, str) else (mask, False)
    if array is not None:
        array = jnp.broadcast_to(array[:, None], (len(queries), 1, *array.shape[1:]))
    return jax.nn.dot_product_attention(
        queries, *memory, mask=array, is_causal=is_causal, implementation="cudnn"
    )


def fused_serves(
    queries: Float[Array, "b t n k"],
    memory: KeysValues,
    mask: Mask,
) -> bool:
    """Tells whether `fused` takes these, and has a gradient.

    That is heads of 8, 16, ... 128 units in one type of 16 bits, and an even t and s, where
    programs are compiled for an NVIDIA GPU of compute capability 8.0 (Ampere) or above. It serves
    no mask that `attend` refuses.
    """
    (_, t, _, k), s = queries.shape, memory.keys.shape[1]
    dtypes = {x.dtype for x in (queries, *memory)}
    fits = dtypes in ({jnp.dtype("bfloat16")}, {jnp.dtype("float16")}) and k % 8 == 0 and k <= 128
    fits = fits and t % 2 == s % 2 == 0
    if isinstance(mask, str):
        fits = fits and mask == "causal" and t == s
    elif mask is not None:
        fits = fits and mask.dtype == bool
    return fits and _on_ampere()


def _on_ampere() -> bool:
    device = jax.local_devices()[0]
    return "cuda" in device.client.platform_version and float(device.compute_capability) >= 8


def memory_heads(heads: int, kv_heads: int | None) -> int:
    """Returns how many heads keys and values have: as many as queries, where None are given.

    Raises ValueError unless there is one at least, and the heads of queries share them evenly.
    """
    m = heads if kv_heads is None else kv_heads
    if m < 1 or heads % m:
        raise ValueError(f"{heads} heads do not share {m} heads of keys and values evenly")
    return m


def causal(t: int) -> Bool[Array, "1 t t"]:
    """Makes the mask that "causal" is: a token sees itself and what came before it."""
    at = jnp.arange(t)
    return (at[:, None] >= at[None])[None]


def _mask_array(mask: Array | str | None, t: int, s: int) -> Array | None:
    """Returns the array that a mask is, or stands for; None lets all see all."""
    if isinstance(mask, str):
        if mask != "causal":
            raise ValueError(f'no mask {mask!r}; there are "causal", None for all, and arrays')
        if t != s:
            raise ValueError(f'a "causal" mask is for {t} keys, one a query, and there are {s}')
        return causal(t)
    if mask is not None and mask.dtype != bool:
        raise ValueError(f"a mask is boolean, true where a query sees a key, got {mask.dtype}")
    return mask


def same_segment(queries: Int[Array, "b t"], keys: Int[Array, "b s"]) -> Bool[Array, "b t s"]:
    """Makes the mask under which a token sees its own segment alone."""
    return queries[:, :, None] == keys[:, None]


class Attention(nn.Module):
    """Multi-head attention; `remember` makes keys and values of what is to be looked through.

    Kernels are (d, n k), and (n k, d) on the way out. Of rotary positions both methods are told
    where their tokens stand.
    """

    width: int
    heads: int
    kv_heads: int | None = None  # heads of the memory, see `memory_heads`
    bias: bool = True
    normalise: bool = False  # queries and keys, by head (Henry et al. 2020, arXiv:2010.04245)
    rotary: bool = False
    dropout: float = 0.0  # of the weights
    kernel_init: Initializer = nn.linear.default_kernel_init
    out_kernel_init: Initializer = nn.linear.default_kernel_init
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the layers."""
        m = memory_heads(self.heads, self.kv_heads)
        if self.width % self.heads or (self.rotary and self.width // self.heads % 2):
            what = f"{self.heads} heads" + (" of even width" if self.rotary else "")
            raise ValueError(f"a width of {self.width} does not split over {what}")
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = partial(Dense, use_bias=self.bias, kernel_init=self.kernel_init, **dtypes)
        wide = m * (self.width // self.heads)
        self.query, self.key, self.value = dense(self.width), dense(wide), dense(wide)
        self.out = dense(self.width, kernel_init=self.out_kernel_init)
        if self.normalise:
            self.query_norm, self.key_norm = RMSNorm(**dtypes), RMSNorm(**dtypes)
        self.drop = Dropout(self.dropout)

    def remember(
        self, x: Float[Array, "b s d"], positions: Int[Array, "#b s"] | None = None
    ) -> KeysValues:
        """Projects x to keys and values."""
        keys, values = self._split(self.key(x)), self._split(self.value(x))
        keys = self.key_norm(keys) if self.normalise else keys
        return KeysValues(self._turn(keys, positions), values)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        memory: KeysValues,
        mask: Mask,
        positions: Int[Array, "#b t"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b t d"]:
        """Attends from x to memory; the weights are sown under "weights"."""
        queries = self._split(self.query(x))
        queries = self.query_norm(queries) if self.normalise else queries
        queries = self._turn(queries, positions)
        wanted = self.is_mutable_collection("intermediates") or (train and self.dropout > 0)
        if fused_serves(queries, memory, mask) and not wanted:
            y = fused(queries, memory, mask)
        else:
            drop = lambda weights: self.drop(weights, train=train)  # noqa: E731
            y, weights = attend(queries, memory, mask, drop=drop)
            self.sow("intermediates", "weights", weights)
        return self.out(y.reshape(x.shape))

    def _split(self, x: Float[Array, "b t d"]) -> Float[Array, "b t n k"]:
        k = self.width // self.heads
        return x.reshape(*x.shape[:2], x.shape[2] // k, k)

    def _turn(self, x: Float[Array, "b t n k"], positions: Array | None) -> Array:
        if not self.rotary:
            return x
        if positions is None:
            raise ValueError("rotary attention has to be told where its tokens stand")
        return rotate(x, positions)
