"""Both styles of `jaxdl.models.TransformerLM` in eager PyTorch, as nanoGPT would write them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jaxdl.interop.safetensors import flatten
from jaxdl.models import TransformerLM


class TorchGPT(nn.Module):
    """The same network, its parts under the same names; its output is tied to its embedding."""

    def __init__(self, model: TransformerLM):
        super().__init__()
        self.limit = model.limit
        self.embed = nn.Embedding(model.vocabulary, model.width)
        self.positions = nn.Embedding(model.limit, model.width) if is_gpt2(model) else None
        blocks = nn.ModuleList(TorchBlock(model) for _ in range(model.layers))
        self.decoder = nn.ModuleDict({"blocks": blocks, "norm": make_norm(model, model.width)})

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the logits after each token."""
        return self.read(tokens) @ self.embed.weight.T

    def read(self, tokens: Tensor) -> Tensor:
        """Returns what the logits are made of."""
        x = self.embed(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.decoder["blocks"]:
            x = block(x)
        return self.decoder["norm"](x)

    @torch.inference_mode()
    def generate(self, tokens: Tensor, *, limit: int, temperature: float) -> Tensor:
        """Continues rows as nanoGPT does: for every token all that came before is read anew."""
        for _ in range(limit):
            seen = self.read(tokens[:, -self.limit :])
            logits = seen[:, -1] @ self.embed.weight.T / temperature
            drawn = torch.multinomial(F.softmax(logits, -1), 1)
            tokens = torch.cat([tokens, drawn], 1)
        return tokens


class TorchBlock(nn.Module):
    """Attention, then the MLP, each beside a path past."""

    def __init__(self, model: TransformerLM):
        super().__init__()
        self.attention, self.mlp = TorchAttention(model), TorchMLP(model)
        self.attention_norm, self.mlp_norm = (make_norm(model, model.width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Computes the block."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class TorchAttention(nn.Module):
    """Causal attention, with one projection to queries, keys and values."""

    def __init__(self, model: TransformerLM):
        super().__init__()
        d, self.heads, self.modern = model.width, model.heads, not is_gpt2(model)
        self.qkv = nn.Linear(d, 3 * d, bias=is_gpt2(model))
        self.out = nn.Linear(d, d, bias=is_gpt2(model))
        if self.modern:
            self.query_norm, self.key_norm = (make_norm(model, d // self.heads) for _ in range(2))
            self.register_buffer("turns", turns(model.limit, d // self.heads), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attends to what came before."""
        b, t, d = x.shape
        split = (y.view(b, t, self.heads, -1) for y in self.qkv(x).split(d, dim=2))
        query, key, value = (y.transpose(1, 2) for y in split)
        if self.modern:
            query, key = self.query_norm(query), self.key_norm(key)
            query, key = (rotate(y, self.turns[:, :t]) for y in (query, key))
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, t, d))


class TorchMLP(nn.Module):
    """Up, an activation, down."""

    def __init__(self, model: TransformerLM):
        super().__init__()
        d, bias = model.width, is_gpt2(model)
        hidden = 4 * d if bias else 8 * d // 48 * 16
        self.up, self.down = nn.Linear(d, hidden, bias), nn.Linear(hidden, d, bias)
        self.gate = None if bias else nn.Linear(d, hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the MLP of each token by itself."""
        if self.gate is not None:
            return self.down(F.silu(self.gate(x)) * self.up(x))
        return self.down(F.gelu(self.up(x), approximate="tanh"))


def is_gpt2(model: TransformerLM) -> bool:
    return model.style == "gpt2"


def make_norm(model: TransformerLM, width: int) -> nn.Module:
    return nn.LayerNorm(width) if is_gpt2(model) else nn.RMSNorm(width, 1e-6)


def turns(limit: int, k: int) -> Tensor:
    """Returns the cosines and the sines of rotary positions, [2 t k/2]."""
    angles = torch.outer(torch.arange(limit), 10_000.0 ** (-torch.arange(k // 2) / (k // 2)))
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    (cos, sin), (a, b) = turns, x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def torch_gpt(model: TransformerLM, params: Any) -> TorchGPT:
    """Carries a network over, weight for weight."""
    state = {}
    for name, array in flatten(params).items():
        part, _, kind = name.replace("blocks_", "blocks.").rpartition(".")
        kind = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(kind, kind)
        state[f"{part}.{kind}"] = torch.tensor(array.T if name.endswith("kernel") else array)
    for name in [name for name in state if ".query." in name]:
        three = [state.pop(name.replace(".query.", f".{x}.")) for x in ("query", "key", "value")]
        state[name.replace(".query.", ".qkv.")] = torch.cat(three)
    network = TorchGPT(model)
    network.load_state_dict(state)
    return network


def torch_adamw(network: nn.Module, rate: float, *, decay: float) -> torch.optim.Optimizer:
    """AdamW as nanoGPT makes it, fused on a GPU; only what has two axes decays."""
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, rate, fused=matrices[0].is_cuda or None)
