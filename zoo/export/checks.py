"""An export counts only if it computes what the network does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from zoo.checkpoints.files import CheckpointError

TOLERANCE = 1e-5
"""Of outputs, relative to the largest of them where that is above 1."""

Function = TypeVar("Function", bound=Callable[..., Any])


def without_gradients(function: Function) -> Function:
    """``torch.no_grad`` that type checkers see through."""
    return torch.no_grad()(function)


def difference(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest value where that is above 1; inf for other shapes or nan."""
    if found.shape != wanted.shape:
        return float("inf")
    found, wanted = found.detach().cpu().double(), wanted.detach().cpu().double()
    largest = float((found - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))
    return largest if largest == largest else float("inf")


def check_close(found: Tensor, wanted: Tensor, what: str) -> None:
    """Raises CheckpointError unless the two agree within :data:`TOLERANCE`."""
    if (apart := difference(found, wanted)) > TOLERANCE:
        raise CheckpointError(
            f"{what} computes something else than torch: outputs {list(found.shape)} and {list(wanted.shape)} differ "
            f"by {apart:.2g} (allowed: {TOLERANCE:g}), so nothing was kept"
        )
