"""Elastic layers: one weight, of which a leading part works alone, without being copied (POA, card section 3).

A layer of full width m that works at width c uses the first c channels of every tensor, and its input is
multiplied by alpha = m / c so that sums over fewer channels keep their size. Neither alpha·x nor alpha·W is ever
computed: alpha goes into vectors of c elements beside the matrix (the affine of the norm before it, or the bias
and the layer scale behind it). A sub-network therefore costs what a network of its size costs, and a network of
that size with those vectors scaled once computes the same numbers with the same kernels.

So that a leading part is always a plain view, weights with grouped rows or columns store the groups innermost:
queries, keys and values head by head, the four neighbours of a patch merging channel by channel.

The input width is read from the input; nothing here keeps a "current width".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Size(NamedTuple):
    """A member of an elastic family.

    Attributes:
        width: channels (of the first stage, where stages differ).
        depth: number of blocks, or one number per stage.
    """

    width: int
    depth: int | tuple[int, ...]


def kept_blocks(depth: int, intact: int) -> tuple[int, ...]:
    """Indices of the ``depth`` blocks that stay of ``intact`` ones: evenly spread, first and last among them.

    ``floor((intact - 1) j / (depth - 1))`` for j = 0 ... depth - 1 (POA, equation 4, rounded as released).

    Raises:
        ValueError: ``depth`` is not between 1 and ``intact``.
    """
    if not 1 <= depth <= intact:
        raise ValueError(f"depth must be between 1 and {intact}, got {depth}")
    return tuple((intact - 1) * j // max(depth - 1, 1) for j in range(depth))


def leading(tensor: Tensor, *sizes: int) -> Tensor:
    """View of the leading ``sizes`` of a tensor; the tensor itself where that is all of it.

    Autocast remembers the low-precision copy of a parameter, not of a view: the intact network has no views. One
    strided view, not a slice per axis: the gradient is padded to full size once, not once per axis.
    """
    return tensor if tensor.shape == sizes else tensor.as_strided(sizes, tensor.stride())


def scaled(tensor: Tensor, factor: float) -> Tensor:
    """``factor`` times the tensor; the tensor itself for 1."""
    return tensor if factor == 1.0 else tensor * factor


class ElasticLinear(nn.Linear):
    """Linear layer ``[..., m_in] → [..., m_out]`` that also works on fewer inputs and outputs."""

    def forward(self, x: Tensor, out_features: int | None = None, bias_factor: float = 1.0) -> Tensor:
        """``[..., c_in] → [..., out_features]``.

        Args:
            x: its last dimension chooses the columns.
            out_features: rows to use; all by default.
            bias_factor: 1/alpha where alpha is applied to the whole output later.
        """
        rows = out_features or self.out_features
        bias = None if self.bias is None else scaled(leading(self.bias, rows), bias_factor)
        return F.linear(x, leading(self.weight, rows, x.shape[-1]), bias)


class ElasticConv2d(nn.Conv2d):
    """Convolution of one group and zero padding that also works on fewer input and output channels."""

    def forward(self, x: Tensor, out_channels: int | None = None) -> Tensor:
        """``[B, c_in, H, W] → [B, out_channels, H', W']``; all output channels by default."""
        rows = out_channels or self.out_channels
        weight = leading(self.weight, rows, x.shape[1], *self.kernel_size)
        bias = None if self.bias is None else leading(self.bias, rows)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)


class ElasticLayerNorm(nn.LayerNorm):
    """Layer norm over the channels that are there; ``factor`` is multiplied into its affine."""

    def forward(self, x: Tensor, factor: float = 1.0, eps: float | None = None) -> Tensor:
        """``[..., c] → [..., c]``."""
        c = x.shape[-1]
        weight, bias = scaled(leading(self.weight, c), factor), scaled(leading(self.bias, c), factor)
        return F.layer_norm(x, (c,), weight, bias, self.eps if eps is None else eps)


class ElasticGroupNorm(nn.GroupNorm):
    """Group norm with the same number of groups at every width; ``factor`` is multiplied into its affine."""

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        """``[B, c, ...] → [B, c, ...]``; ``c`` is a multiple of the number of groups."""
        c = x.shape[1]
        weight, bias = scaled(leading(self.weight, c), factor), scaled(leading(self.bias, c), factor)
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)


class ElasticLayerScale(nn.Module):
    """One learned factor per channel; takes an alpha along."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        """``[..., c] → [..., c]``."""
        return x * scaled(leading(self.gamma, x.shape[-1]), factor)


class ElasticMlp(nn.Module):
    """Two linear layers with an exact GELU between them, ``ratio`` times as wide inside.

    The caller has put the first alpha into the norm before; the second one is left to the caller as well, who gets
    the output divided by it.
    """

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.fc1 = ElasticLinear(dim, int(dim * ratio))
        self.fc2 = ElasticLinear(int(dim * ratio), dim)

    def forward(self, x: Tensor, bias_factor: float = 1.0) -> Tensor:
        """``[..., c] → [..., c]``; ``bias_factor`` is 1/alpha."""
        c = x.shape[-1]
        return self.fc2(F.gelu(self.fc1(x, int(c * self.ratio))), c, bias_factor)


class ElasticAttention(nn.Module):
    """Multi-head self-attention that uses its first heads on narrower inputs.

    Rows of ``qkv_by_head`` are ordered head, then query/key/value, then channel; the name differs from the usual
    ``qkv`` so that no weights in the usual order are loaded by accident. Both alphas are left to the caller, as in
    :class:`ElasticMlp`.

    Args:
        dim: channels, a multiple of ``head_dim``.
        head_dim: channels per head, the same at every width.
    """

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim, self.num_heads = head_dim, dim // head_dim
        self.qkv_by_head = ElasticLinear(dim, 3 * dim)
        self.proj = ElasticLinear(dim, dim)

    def forward(self, x: Tensor, logit_bias: Tensor | None = None, bias_factor: float = 1.0) -> Tensor:
        """``[B, N, c] → [B, N, c]``.

        Args:
            x: tokens.
            logit_bias: added to the attention logits; broadcastable to ``[B, heads, N, N]``.
            bias_factor: 1/alpha.
        """
        B, N, c = x.shape
        qkv = self.qkv_by_head(x, 3 * c).view(B, N, c // self.head_dim, 3, self.head_dim)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))
        if logit_bias is not None:
            logit_bias = logit_bias.to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, logit_bias)
        return self.proj(out.transpose(1, 2).reshape(B, N, c), c, bias_factor)


def mask_tokens(x: Tensor, mask: Tensor | None, token: Tensor) -> Tensor:
    """Put ``token`` where ``mask`` is True.

    Args:
        x: ``[B, ..., c]``.
        mask: bool ``[B, ...]``, or ``None`` for none.
        token: broadcastable to ``[c]``.
    """
    return x if mask is None else torch.where(mask.unsqueeze(-1), token.to(x.dtype), x)
