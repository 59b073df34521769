"""Contrast of two descriptions of the same items: which of the batch belongs to which."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.nn.ranks import gather_with_gradient, this_rank


def paired_scores(one: Tensor, other: Tensor, temperature: float = 0.07) -> Tensor:
    """Cosines over the temperature, float32 ``[B, K]`` of ``[B, D]`` and ``[K, D]``."""
    with torch.autocast(one.device.type, enabled=False):
        return F.normalize(one.float(), dim=-1) @ F.normalize(other.float(), dim=-1).T / temperature


def paired_contrast(one: Tensor, other: Tensor, temperature: float = 0.07, gather: bool = False) -> Tensor:
    """Mean of the cross-entropies of finding ``other[i]`` for ``one[i]`` and the reverse (symmetric InfoNCE).

    Args:
        one: ``[B, D]``.
        other: ``[B, D]``, the i-th belongs to the i-th of ``one``.
        temperature: divides the cosines.
        gather: whether the items of all ranks compete, and not only those of this one.
    """
    rows, columns = (gather_with_gradient(part) if gather else part for part in (one, other))
    own = torch.arange(len(one), device=one.device) + (this_rank() * len(one) if gather else 0)
    forth = paired_scores(one, columns, temperature)
    back = paired_scores(other, rows, temperature) if gather else forth.T
    return (F.cross_entropy(forth, own) + F.cross_entropy(back, own)) / 2
