"""Quantisation of activations in groups, with ranges that follow the data (Mesa, arXiv 2111.11124, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Literal

import torch
from torch import Tensor

Overflow = Literal["clip", "wrap"]


@dataclass(frozen=True)
class Codes:
    """A tensor in few bits: ``codes * step + shift`` per group.

    Attributes:
        codes: uint8; two codes a byte for 4 bits.
        step: width of a bin per group, broadcastable to the grouped tensor.
        shift: value of code 0 per group, likewise.
        shape: of the tensor.
        dtype: of the tensor.
        groups: number of groups.
        bits: 8 or 4.
    """

    codes: Tensor
    step: Tensor
    shift: Tensor
    shape: torch.Size
    dtype: torch.dtype
    groups: int
    bits: int

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.codes.nbytes + self.step.nbytes + self.shift.nbytes


def fitting_groups(shape: torch.Size, groups: int) -> int:
    """The largest number of groups up to ``groups`` that divides both it and the channels."""
    return gcd(shape[channel_dim(shape)], groups)


def channel_dim(shape: torch.Size) -> int:
    """Channels come last in ``[B, C]`` and ``[B, N, C]``, second in ``[B, heads, N, D]`` and maps."""
    return 1 if len(shape) > 3 else -1


def grouped(x: Tensor, groups: int) -> Tensor:
    """View with the channels split into contiguous groups: ``[..., C, ...]`` → ``[..., groups, C / groups, ...]``."""
    return x.unflatten(channel_dim(x.shape), (groups, -1))


class RunningRange:
    """Least value and extent per group, as moving averages over calls (Mesa, equations 5 and 6, as released).

    The first call takes the tensor's own. Later calls move a share ``1 - decay`` towards it, before the same
    tensor is quantised, so growing activations overshoot the range for a while.

    Args:
        decay: share of the old range; 0 always takes the tensor's own.
        extent: ``max - min`` (alpha) per group; ``None`` before the first call.
        low: ``min`` (beta) per group.
    """

    def __init__(self, decay: float = 0.9, extent: Tensor | None = None, low: Tensor | None = None) -> None:
        self.decay, self.extent, self.low = decay, extent, low

    def state(self) -> list[Tensor]:
        """Extent and low, on the CPU; empty before the first call."""
        return [] if self.extent is None or self.low is None else [self.extent.cpu(), self.low.cpu()]

    def observe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a grouped tensor; returns extent and low, broadcastable to it. Nothing is changed in place."""
        axis = 1 if x.ndim > 4 else x.ndim - 2  # see channel_dim: grouped tensors have one dimension more
        others = [dim for dim in range(x.ndim) if dim != axis]
        low, high = x.amin(others, keepdim=True).float(), x.amax(others, keepdim=True).float()
        extent, shape = high - low, low.shape
        if self.extent is None or self.low is None:
            self.extent, self.low = extent.flatten(), low.flatten()
        else:
            self.extent = torch.lerp(extent.flatten(), self.extent.to(extent.device), self.decay)
            self.low = torch.lerp(low.flatten(), self.low.to(low.device), self.decay)
        return self.extent.view(shape), self.low.view(shape)


class OwnRange(RunningRange):
    """The tensor's own range per row of its last dimension; nothing runs.

    Bins as wide as the longest token's lose a short token, and a layer norm behind it blows the loss up.
    """

    def observe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Extent and low of every row."""
        low, high = x.amin(-1, keepdim=True).float(), x.amax(-1, keepdim=True).float()
        return high - low, low


def encode(
    x: Tensor,
    groups: int,
    running: RunningRange,
    bits: int = 8,
    overflow: Overflow = "clip",
    noise: Tensor | None = None,
) -> Codes:
    """Quantise ``x`` to ``2^bits`` levels per group.

    ``code = round(max((x - low) (2^bits - 1) / extent + u - 1/2, 0))`` with u uniform in [0, 1), so that the mean
    over draws is x within the range; u = 1/2, plain rounding, without noise. Half-way cases go to the even code.

    Where the range starts at 0, what is above 0 never gets code 0: a rectifier's backward reads its mask off its
    output (the paper's ReLU stores that bit by itself).

    Args:
        x: floating-point activations of rank 2 or more.
        groups: divides the channels.
        running: ranges of this place in the network.
        bits: 8 or 4.
        overflow: codes above the largest: ``clip`` (the paper), or ``wrap`` to small codes as the released kernel
            does by casting to bytes.
        noise: u - 1/2 in units of 2^-16 (:func:`rounding_noise`), broadcastable to x.

    Raises:
        ValueError: the rank is below 2, or bits are neither 8 nor 4.
    """
    if x.ndim < 2 or bits not in (4, 8):
        raise ValueError(f"encode takes tensors of rank 2 or more and 8 or 4 bits, got {x.ndim} and {bits}")
    top = 2**bits - 1
    view = grouped(x.detach(), groups)
    extent, low = running.observe(view)
    # A constant group has no bins: its code is 0 and its value the range's low end.
    scale = torch.where(extent > 0, top / extent, 0.0)
    codes = torch.sub(view, low).mul_(scale) if view.dtype == torch.float32 else (view.float() - low) * scale
    if noise is not None:
        codes.add_(noise.expand(x.shape).view(codes.shape), alpha=1 / 65_536)
    codes = codes.round_().clamp_(min=0)
    codes = codes.clamp_(max=top) if overflow == "clip" else codes.remainder_(top + 1)
    codes = torch.maximum(codes, (view > 0) & (low == 0))
    flat = codes.to(torch.uint8).flatten()
    if bits == 4:
        flat = torch.nn.functional.pad(flat, (0, flat.numel() % 2))
        flat = flat[::2] | flat[1::2] << 4
    return Codes(flat, extent / top, low, x.shape, x.dtype, groups, bits)


def rounding_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform 16-bit integers in the shape of ``like``.

    Four from each 64-bit draw cost a third of uniform floats on a CPU, and 2^-16 of a bin is below what shows.
    """
    draws = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    draws.random_(-(2**63), None, generator=generator)
    return draws.view(torch.int16)[: like.numel()].view(like.shape)


def decode(packed: Codes) -> Tensor:
    """The tensor that the codes stand for, in its shape and dtype."""
    flat = packed.codes
    if packed.bits == 4:
        flat = torch.stack((flat & 15, flat >> 4), -1).flatten()[: packed.shape.numel()]
    view = grouped(flat.view(packed.shape), packed.groups)
    return (view.float().mul_(packed.step).add_(packed.shift)).to(packed.dtype).view(packed.shape)
