"""Entropy of predictions and its percentile over chosen pixels, without leaving the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def prediction_entropy(logits: Tensor) -> Tensor:
    """Return ``-sum_c p_c log p_c`` in nats: logits ``[B, C, *]`` → ``[B, *]``.

    With ``z = logit - largest`` that is ``log(sum_c e^z) - sum_c z e^z / sum_c e^z``, of which all terms are positive:
    one logarithm a pixel, and closer to the true value than released codes, which take ``p log(p + 1e-10)``.
    """
    logits = logits.float()
    # Where a class is impossible (-inf), 0 times -inf would be nan.
    shifted = (logits - logits.amax(1, keepdim=True)).clamp_(min=-100.0)
    weight = shifted.exp()
    total = weight.sum(1)
    return total.log() - (weight * shifted).sum(1) / total


def masked_percentile(values: Tensor, mask: Tensor, percent: float) -> Tensor:
    """Percentile of ``values[mask]``, linear between neighbours like NumPy's; NaN where nothing is chosen.

    The largest values alone are put into order, as many as the percentile can reach down to where all are chosen; the
    number of chosen ones never has to reach the host.

    Args:
        values: any shape.
        mask: bool, same shape: which values count.
        percent: in [0, 100].

    Returns:
        A scalar tensor.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"percent must be within [0, 100], got {percent}")
    share, number = percent / 100, values.numel()
    reached = min(math.ceil((number - 1) * (1 - share)) + 2, number)  # one more, for rounding
    largest = values.masked_fill(~mask, -float("inf")).flatten().topk(reached).values
    count = mask.sum()
    last = (count - 1).clamp(min=0)
    position = last.double() * share
    below = position.floor().long()
    above = torch.minimum(below + 1, last)
    low, high = largest.gather(0, torch.stack((last - below, last - above))).unbind()
    value = torch.lerp(low, high, (position - below).to(low.dtype))
    return value.masked_fill(count == 0, float("nan"))


def patch_entropy(patches: Tensor, channels: int = 1) -> Tensor:
    """Entropy of the levels of every patch, mean of its channels', brought to [0, 1] within each item (Uni4Eye++).

    Levels are whole numbers 0..255, one bin each. Where all patches of an item are alike, all get 1. The released
    code counts values in [0, 1] as they are, so that nearly all fall into the first bin.

    Args:
        patches: values ``[B, N, values * channels]`` in [0, 1], channels fastest.
        channels: of the image.

    Returns:
        ``[B, N]``.
    """
    levels = (
        patches.float().mul(255).round_().clamp_(0, 255).long().unflatten(2, (-1, channels)).transpose(2, 3)
    )
    ones = torch.ones_like(levels, dtype=torch.float32)
    counts = torch.zeros(*levels.shape[:3], 256, device=patches.device).scatter_add_(3, levels, ones)
    entropy = torch.special.entr(counts / levels.shape[3]).sum(3).mean(2)
    low, high = entropy.amin(1, keepdim=True), entropy.amax(1, keepdim=True)
    return torch.where(high > low, (entropy - low) / (high - low).clamp(min=1e-12), 1.0)
