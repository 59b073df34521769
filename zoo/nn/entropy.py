"""Entropy of predictions and its percentile over chosen pixels, without leaving the device."""

from __future__ import annotations

import torch
from torch import Tensor


def prediction_entropy(logits: Tensor) -> Tensor:
    """Return ``-sum_c p_c log(p_c + 1e-10)`` in nats: logits ``[B, C, *]`` → ``[B, *]``."""
    probability = logits.float().softmax(1)
    return -(probability * (probability + 1e-10).log()).sum(1)


def masked_percentile(values: Tensor, mask: Tensor, percent: float) -> Tensor:
    """Percentile of ``values[mask]``, linear between neighbours like NumPy's; NaN where nothing is chosen.

    One sort in place of boolean indexing, so that the number of chosen values never has to reach the host.

    Args:
        values: any shape.
        mask: bool, same shape: which values count.
        percent: in [0, 100].

    Returns:
        A scalar tensor.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"percent must be within [0, 100], got {percent}")
    ordered = values.masked_fill(~mask, float("inf")).flatten().sort().values
    last = mask.sum() - 1
    position = last.clamp(min=0).double() * (percent / 100)
    below = position.floor().long()
    above = torch.minimum(below + 1, last.clamp(min=0))
    low, high = ordered.gather(0, torch.stack((below, above))).unbind()
    value = torch.lerp(low, high, (position - below).to(low.dtype))
    return value.masked_fill(last < 0, float("nan"))


def patch_entropy(patches: Tensor) -> Tensor:
    """Entropy of the grey levels of every patch, brought to [0, 1] within each item (Uni4Eye++).

    Levels are whole numbers 0..255, one bin each. Where all patches of an item are alike, all get 1. The released
    code counts values in [0, 1] as they are, so that nearly all fall into the first bin.

    Args:
        patches: values ``[B, N, values]`` in [0, 1].

    Returns:
        ``[B, N]``.
    """
    levels = patches.float().mul(255).round_().clamp_(0, 255).long()
    ones = torch.ones_like(levels, dtype=torch.float32)
    counts = torch.zeros(*levels.shape[:2], 256, device=patches.device).scatter_add_(2, levels, ones)
    entropy = torch.special.entr(counts / levels.shape[2]).sum(2)
    low, high = entropy.amin(1, keepdim=True), entropy.amax(1, keepdim=True)
    return torch.where(high > low, (entropy - low) / (high - low).clamp(min=1e-12), 1.0)
