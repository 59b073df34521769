"""Transformer blocks whose attention has biases of queries and values alone, with and without a second input.

The blocks of BEiT and VideoMAE, and of HiCMAE (Sun et al., Information Fusion 2024, as released): pre-norm, exact GELU,
layer norms with eps 1e-6. A bias of the keys would change nothing: it adds the same to all scores of a query.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.stochastic_depth import StochasticDepth

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class SelfAttention(nn.Module):
    """Multi-head attention of tokens among themselves.

    Args:
        dim: D, channels of tokens.
        num_heads: must divide D.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, D] → [B, N, D]``."""
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        q, k, v = F.linear(x, self.qkv.weight, bias).chunk(3, -1)
        return self.proj(attended(q, k, v, self.num_heads))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to those of a second input.

    Args:
        dim: D, channels of both.
        num_heads: must divide D.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.q, self.kv = nn.Linear(dim, dim, bias=False), nn.Linear(dim, 2 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``[B, N, D]`` with a context ``[B, M, D]`` → ``[B, N, D]``."""
        q = F.linear(x, self.q.weight, self.q_bias)
        bias = torch.cat((torch.zeros_like(self.v_bias), self.v_bias))
        k, v = F.linear(context, self.kv.weight, bias).chunk(2, -1)
        return self.proj(attended(q, k, v, self.num_heads))


class Feedforward(nn.Module):
    """``Linear - GELU - Linear``, four times as wide inside.

    Args:
        dim: D, channels of tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, D] → [B, N, D]``."""
        return self.fc2(F.gelu(self.fc1(x)))


class SelfBlock(nn.Module):
    """``x += Attention(LN(x)); x += MLP(LN(x))``.

    Args:
        dim: D, channels of tokens.
        num_heads: must divide D.
        drop_path_rate: share of the samples that skip a branch in training.
    """

    def __init__(self, dim: int, num_heads: int, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(dim), LayerNorm(dim)
        self.attn, self.mlp = SelfAttention(dim, num_heads), Feedforward(dim)
        self.drop_path = StochasticDepth(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, D] → [B, N, D]``."""
        x = self.drop_path(x, lambda x: self.attn(self.norm1(x)))
        return self.drop_path(x, lambda x: self.mlp(self.norm2(x)))


class CrossBlock(SelfBlock):
    """A :class:`SelfBlock` that first attends to a context: ``x += CrossAttention(LN(x), LN(context))``.

    Args:
        dim: D, channels of tokens and context.
        num_heads: must divide D.
        drop_path_rate: share of the samples that skip a branch in training.
    """

    def __init__(self, dim: int, num_heads: int, drop_path_rate: float = 0.0) -> None:
        super().__init__(dim, num_heads, drop_path_rate)
        self.cross_norm1, self.cross_norm2 = LayerNorm(dim), LayerNorm(dim)
        self.cross_attn = CrossAttention(dim, num_heads)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        """``[B, N, D]`` with a context ``[B, M, D]`` → ``[B, N, D]``."""
        context = self.cross_norm2(context)
        x = self.drop_path(x, lambda x: self.cross_attn(self.cross_norm1(x), context))
        return super().forward(x)


def attended(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Scaled dot-product attention of queries ``[B, N, D]`` to keys and values ``[B, M, D]``, head by head."""
    q, k, v = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def sinusoids(positions: int, dim: int) -> Tensor:
    """Fixed positions ``[1, positions, dim]``: ``p / 10000^(2 (j // 2) / dim)``, sine for even j, cosine for odd."""
    channel = torch.arange(dim, dtype=torch.float64)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()[None]


def init_blocks(module: nn.Module) -> None:
    """Xavier-uniform weights and biases of 0 in all linear layers below ``module``, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _check_heads(dim: int, num_heads: int) -> None:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"{num_heads} attention heads do not divide a width of {dim}: change one of the two")
