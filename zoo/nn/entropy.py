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
