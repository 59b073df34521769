"""Whole networks filled by formula: how the parity files describe weights without storing them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tests.parity.formulas import det


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Floating-point tensors of the state dict, in the order of registration."""
    return {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}


def rename(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """Apply (pattern, replacement) rules in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


@torch.no_grad()
def fill(tensors: Iterable[tuple[str, Tensor | None]], k0: int) -> None:
    """Values by formula over (name, tensor) in the released order; ``None`` only counts.

    With ``base = det(shape, k0 + j)``: variances are ``1 + |base| / 2``, running means ``base / 10``, scales of
    normalisation ``1 + base / 10``, biases ``base / 10``, other weights ``base`` over the root of their fan-in.
    """
    for j, (name, tensor) in enumerate(tensors):
        if tensor is None:
            continue
        base = det(tensor.shape, k0 + j)
        if name.endswith("running_var"):
            base = 1 + 0.5 * base.abs()
        elif name.endswith("running_mean"):
            base = 0.1 * base
        elif tensor.dim() <= 1:
            base = 1 + 0.1 * base if name.endswith("weight") else 0.1 * base
        else:
            base = base / (tensor.numel() / tensor.shape[0]) ** 0.5
        tensor.copy_(base)


def layout_hash(keys_and_shapes: Iterable[tuple[str, list[int]]]) -> str:
    """The parity files' checksum of released names and shapes."""
    return hashlib.sha256("\n".join(f"{key} {shape}" for key, shape in keys_and_shapes).encode()).hexdigest()
