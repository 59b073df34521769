"""The decode head of DAFormer: per-stage projections fused by one separable ASPP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.heads.classifier import pixel_classifier


class ConvBNReLU(nn.Sequential):
    """Convolution without bias, batch norm, ReLU; children are called ``conv`` and ``bn`` as in released files."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")


class SeparableConv(nn.Sequential):
    """Depth-wise 3×3 with dilation, then point-wise, each with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.depthwise_conv = ConvBNReLU(inputs, inputs, 3, dilation, groups=inputs)
        self.pointwise_conv = ConvBNReLU(inputs, outputs)


class Projection(nn.Module):
    """One linear map per pixel: ``[B, C, h, w]`` → ``[B, D, h, w]``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Project the channels."""
        return self.proj(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ContextFusion(nn.Module):
    """ASPP without image pooling over the concatenated stages, and a 3×3 bottleneck."""

    def __init__(self, inputs: int, width: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.aspp_modules = nn.ModuleList(
            ConvBNReLU(inputs, width) if dilation == 1 else SeparableConv(inputs, width, dilation)
            for dilation in dilations
        )
        self.bottleneck = ConvBNReLU(len(dilations) * width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Fuse ``[B, inputs, h, w]`` to ``[B, width, h, w]``."""
        return self.bottleneck(torch.cat([branch(x) for branch in self.aspp_modules], 1))


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
        self.fuse_layer = ContextFusion(len(channels) * width, width, dilations)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps, fine to coarse → logits ``[B, num_classes, h_0, w_0]``."""
        size = features[0].shape[-2:]
        embedded = [embed(feature) for embed, feature in zip(self.embed_layers, features, strict=True)]
        upsampled = [x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear") for x in embedded]
        return self.conv_seg(self.dropout(self.fuse_layer(torch.cat(upsampled, 1))))
