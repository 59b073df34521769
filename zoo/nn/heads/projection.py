"""The projection head of pixel contrast: from feature maps to unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.heads.blocks import ConvBNReLU, resize


class ProjectionHead(nn.Module):
    """1×1 convolutions with batch norm and ReLU, then L2 normalisation: embeddings for contrast, not classes.

    Several maps are upsampled to the first one and concatenated. The last layer has its ReLU too, so that
    embeddings are non-negative unit vectors. Xie et al., "SePiCo" (TPAMI 2023), as released; parameter names
    are those of the released checkpoints.

    Args:
        channels: channels of the maps it will get.
        dim: channels A of the embedding.
        num_convs: number of layers; hidden ones are as wide as the mean map.
    """

    def __init__(self, channels: Sequence[int], dim: int = 512, num_convs: int = 2) -> None:
        super().__init__()
        if not channels or num_convs < 1:
            raise ValueError(
                f"ProjectionHead needs at least one map and one layer, got channels={list(channels)}, "
                f"num_convs={num_convs}"
            )
        inputs = sum(channels)
        widths = (inputs, *[inputs // len(channels)] * (num_convs - 1), dim)
        self.convs = nn.Sequential(*(ConvBNReLU(*pair) for pair in pairwise(widths)))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps ``[B, channels[i], h_i, w_i]`` → embeddings ``[B, dim, h_0, w_0]``, float32."""
        size = features[0].shape[-2:]
        maps = torch.cat([resize(x, size) for x in features], 1)
        return F.normalize(self.convs(maps).float(), dim=1)
