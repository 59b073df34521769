"""Whether confidence means what it says: expected calibration error from sums that add up over batches and ranks."""

from __future__ import annotations

import torch
from torch import Tensor


def counts(index: Tensor, bins: int, weight: Tensor | None = None) -> Tensor:
    """How often each of ``bins`` values occurs, or the sum of the weights there; float32 ``[bins]``.

    Unlike ``bincount`` this does not wait for the device. Values outside ``[0, bins)`` are not counted.
    """
    flat = index.flatten()
    inside = (flat >= 0) & (flat < bins)
    amount = inside.float() if weight is None else torch.where(inside, weight.flatten().float(), 0.0)
    return torch.zeros(bins, device=flat.device).scatter_add_(0, flat.clamp(0, bins - 1), amount)


def calibration_sums(confidence: Tensor, correct: Tensor, valid: Tensor, bins: int = 15) -> Tensor:
    """Number, sum of confidence and number of correct predictions of every bin of confidence.

    Args:
        confidence: in [0, 1], any shape.
        correct: bool, of the same shape.
        valid: bool, of the same shape; others are left out.
        bins: of equal width.

    Returns:
        ``[3, bins]`` float32.
    """
    index = (confidence.float() * bins).ceil().long().sub_(1).clamp_(min=0)  # (lower, upper], as is customary
    index = torch.where(valid, index, -1)
    return torch.stack([counts(index, bins), counts(index, bins, confidence), counts(index, bins, correct)])


def calibration_error(sums: Tensor) -> Tensor:
    """ECE (Guo et al., ICML 2017, Eq. 3): mean gap between confidence and accuracy, weighted by the bins' sizes."""
    number, confidence, correct = sums
    return (confidence - correct).abs().sum() / number.sum()
