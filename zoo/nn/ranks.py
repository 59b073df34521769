"""Sums and collections over the ranks of distributed training; the value itself where there is only one."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum ``value``, which has one shape on all ranks, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
    return value


def max_over_ranks(value: Tensor) -> Tensor:
    """Element-wise maximum of ``value``, which has one shape on all ranks, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def mean_over_ranks(value: Tensor) -> Tensor:
    """Average ``value``, which has one shape on all ranks and stays as it is: gradients may share their memory."""
    if dist.is_available() and dist.is_initialized():
        return sum_over_ranks(value.clone()) / dist.get_world_size()
    return value


def gather_ranks(value: Tensor) -> Tensor:
    """Concatenate the ``value`` of every rank, all of one shape, along the first dimension."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """:func:`gather_ranks`, through which every rank's part gets the gradients of all ranks."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.size = len(value)
        return gather_ranks(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_ranks(gradients[0].clone()).split(ctx.size)[this_rank()]


def gather_with_gradient(value: Tensor) -> Tensor:
    """Concatenate the ``value`` of every rank, all of one shape, along the first dimension; gradients go back."""
    return _Gather.apply(value) if rank_count() > 1 else value


def gather_uneven(value: Tensor) -> Tensor:
    """Concatenate the ``value`` of every rank along the first dimension, which may be longer on some."""
    if rank_count() == 1:
        return value
    sizes = gather_ranks(torch.tensor([len(value)], device=value.device)).tolist()
    padded = value.new_zeros(max(sizes), *value.shape[1:])
    padded[: len(value)] = value
    parts = gather_ranks(padded).split(max(sizes))
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def this_rank() -> int:
    """Number of this process among those that train together; 0 where it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def rank_count() -> int:
    """Number of processes that train together; 1 where this one is alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_objects(value: Any) -> list[Any]:
    """The ``value`` of every rank, in their order; anything that can be pickled."""
    if rank_count() == 1:
        return [value]
    values: list[Any] = [None] * rank_count()
    dist.all_gather_object(values, value)
    return values


def broadcast_buffers(module: nn.Module) -> None:
    """Give all ranks the buffers of rank 0, in place."""
    if rank_count() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
