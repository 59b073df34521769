"""The projector of VoCo, and its dropout of whole crops."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projector(nn.Module):
    """Three linear layers, the first two with batch norm and ReLU (VoCo's projector).

    The norm has no parameters and always uses the statistics of its batch, in evaluation too: it couples all rows
    it is given, so give it all crops of a batch at once.

    Args:
        in_dim: length of the embeddings.
        hidden_dim: width of the hidden layers.
        out_dim: length of the projections.
    """

    def __init__(self, in_dim: int, hidden_dim: int = 1024, out_dim: int = 1024) -> None:
        super().__init__()
        self.layer1 = _projected(in_dim, hidden_dim)
        self.layer2 = _projected(hidden_dim, hidden_dim)
        self.layer3 = nn.Sequential(nn.Linear(hidden_dim, out_dim))

    def forward(self, embedding: Tensor) -> Tensor:
        """``[N, in_dim]`` → ``[N, out_dim]``; N must be above 1."""
        return self.layer3(self.layer2(self.layer1(embedding)))


class RowDropout(nn.Module):
    """Zero whole rows of a matrix and scale the others up, in training and evaluation alike.

    VoCo applies a 1-d channel dropout to its matrix of embeddings, which torch reads as (channels, length): whole
    crops are dropped, not features, and the layer is made anew in every forward, so it never switches off.

    Args:
        p: probability of dropping a row.

    Raises:
        ValueError: ``p`` is not within [0, 1).
    """

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"row_dropout must be within [0, 1), got {p}")
        self.p = p

    def forward(self, rows: Tensor) -> Tensor:
        """``[N, D]`` → ``[N, D]``."""
        if not self.p:
            return rows
        keep = torch.rand(len(rows), 1, device=rows.device) >= self.p
        return rows * (keep.to(rows.dtype) / (1.0 - self.p))


def _projected(inputs: int, outputs: int) -> nn.Sequential:
    norm = nn.BatchNorm1d(outputs, affine=False, track_running_stats=False)
    return nn.Sequential(nn.Linear(inputs, outputs), norm, nn.ReLU(inplace=True))
