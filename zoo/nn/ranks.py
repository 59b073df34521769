"""Sums and collections over the ranks of distributed training; the value itself where there is only one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum ``value``, which has one shape on all ranks, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
    return value


def mean_over_ranks(value: Tensor) -> Tensor:
    """Average ``value``, which has one shape on all ranks."""
    if dist.is_available() and dist.is_initialized():
        return sum_over_ranks(value) / dist.get_world_size()
    return value


def gather_ranks(value: Tensor) -> Tensor:
    """Concatenate the ``value`` of every rank, all of one shape, along the first dimension."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)
