"""The decode head of DAFormer: per-stage projections fused by one separable ASPP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.nn.heads.aspp import ASPP
from zoo.nn.heads.blocks import resize
from zoo.nn.heads.classifier import pixel_classifier


class Projection(nn.Module):
    """One linear map per pixel: ``[B, C, h, w]`` → ``[B, D, h, w]``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Project the channels."""
        return self.proj(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DAFormerHead(nn.Module):
    """Context-aware fusion of four stages: Hoyer et al., "DAFormer" (CVPR 2022), section 3.2, as released.

    Every stage is projected to ``width`` channels, upsampled to the finest one and concatenated, fine to
    coarse; branches of dilation 1, 6, 12 and 18 (the dilated ones depth-wise separable) see them together.
    Parameter names are those of the released checkpoints.

    Args:
        channels: channels of the maps, fine to coarse.
        num_classes: channels of the logits.
        width: channels of projections and branches.
        dilations: of the branches; 1 is a 1×1 convolution.
        dropout: probability of dropping a whole channel before the classifier.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        width: int = 256,
        dilations: Sequence[int] = (1, 6, 12, 18),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.conv_seg = pixel_classifier(width, num_classes)
        self.embed_layers = nn.ModuleList(Projection(c, width) for c in channels)
        self.fuse_layer = ASPP(len(channels) * width, width, dilations, separable=True, image_pooling=False)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps, fine to coarse → logits ``[B, num_classes, h_0, w_0]``."""
        size = features[0].shape[-2:]
        embedded = [embed(feature) for embed, feature in zip(self.embed_layers, features, strict=True)]
        fused = self.fuse_layer(torch.cat([resize(x, size) for x in embedded], 1))
        return self.conv_seg(self.dropout(fused))
