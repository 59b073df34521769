"""The largest magnitude of each of many tensors, at the cost of reading them once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def largest_entries(tensors: Iterable[Tensor]) -> Tensor:
    """Largest magnitude of every tensor: float32 ``[N]`` on the device, nan or inf where a tensor holds any.

    Args:
        tensors: at least one, none of them empty; sharded ones answer for their shard.
    """
    local = [getattr(tensor, "to_local", lambda tensor=tensor: tensor)() for tensor in tensors]
    return torch.stack([norm.float() for norm in torch._foreach_norm(local, float("inf"))])
