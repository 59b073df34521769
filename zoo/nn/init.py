"""Initial weights of linear layers."""

from __future__ import annotations

from torch import nn


def init_linear(layer: nn.Linear, std: float | None) -> None:
    """Truncated normal weights and a bias of 0.

    Args:
        layer: is changed in place.
        std: standard deviation; ``None`` takes ``1 / sqrt(inputs)``, which keeps the size of what goes through. The
            customary 0.02 is that of 2500 inputs: behind it, narrow networks say all but the same of every image.
    """
    nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5 if std is None else std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
