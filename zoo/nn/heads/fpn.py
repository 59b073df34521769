"""A light decode head in the manner of feature pyramid networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.heads.blocks import resize


class FPNHead(nn.Module):
    """Sum the projected maps from coarse to fine, smooth once, classify at the finest map's resolution.

    Lin et al., "Feature Pyramid Networks" (CVPR 2017), reduced to one output: a 1×1 convolution brings every
    map to ``width`` channels, each sum is upsampled bilinearly onto the next finer map, and a single
    3×3 convolution with batch norm smooths the sum. It works just below the finest map, where it costs a
    quarter (a single map is smoothed itself); the finest map then adds its detail before ReLU and the
    classifier.

    Args:
        channels: channels of the maps, fine to coarse.
        num_classes: channels of the logits.
        width: channels inside the head.
        dropout: probability of dropping a whole channel before the classifier.
    """

    def __init__(
        self, channels: Sequence[int], num_classes: int, width: int = 48, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if not channels:
            raise ValueError("FPNHead: channels is empty, but the head needs at least one map")
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps ``[B, channels[i], h_i, w_i]``, fine to coarse → logits ``[B, num_classes, h_0, w_0]``."""
        finest, *coarser = (project(feature) for project, feature in zip(self.lateral, features, strict=True))
        if coarser:
            fused = coarser.pop()
            while coarser:
                finer = coarser.pop()
                fused = finer + resize(fused, finer.shape[-2:])
            fused = F.relu(finest + resize(self.smooth(fused), finest.shape[-2:]))
        else:
            fused = self.smooth(finest)
        return self.classifier(self.dropout(fused))
