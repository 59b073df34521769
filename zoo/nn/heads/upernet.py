"""The decode head of UPerNet: pyramid pooling on top of a feature pyramid, every level fused."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.nn.heads.blocks import ConvBNReLU, resize
from zoo.nn.heads.classifier import pixel_classifier
from zoo.nn.heads.pspnet import PyramidPooling


class UPerHead(nn.Module):
    """Xiao et al., "Unified Perceptual Parsing" (ECCV 2018), section 3.1, the head for pixel classes.

    For Swin and any backbone with several maps. Parameter names are those of MMSegmentation.

    Args:
        channels: channels of the maps, fine to coarse.
        num_classes: channels of the logits.
        width: channels inside the head.
        bins: cells per side of each branch of the pyramid pooling.
        dropout: probability of dropping a whole channel before the classifier.
        align_corners: of the upsampling inside the head.

    Raises:
        ValueError: the backbone gives a single map.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        width: int = 512,
        bins: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        *finer, coarsest = channels
        if not finer:
            raise ValueError(
                f"upernet needs at least two maps, but the backbone gives channels {list(channels)}"
            )
        self.align_corners = align_corners
        self.conv_seg = pixel_classifier(width, num_classes)
        self.psp_modules = PyramidPooling(coarsest, width, bins, align_corners)
        self.bottleneck = ConvBNReLU(coarsest + len(bins) * width, width, 3)
        self.lateral_convs = nn.ModuleList(ConvBNReLU(c, width) for c in finer)
        self.fpn_convs = nn.ModuleList(ConvBNReLU(width, width, 3) for _ in finer)
        self.fpn_bottleneck = ConvBNReLU(len(channels) * width, width, 3)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps, fine to coarse → logits ``[B, num_classes, h_0, w_0]``.

        Raises:
            ValueError: a batch of one image in training (see :class:`zoo.nn.heads.blocks.PooledConv`).
        """
        *finer, coarsest = features
        summed = self.bottleneck(self.psp_modules(coarsest))
        levels = [summed]
        laterals = [lateral(x) for lateral, x in zip(self.lateral_convs, finer, strict=True)]
        for lateral, smooth in zip(reversed(laterals), reversed(self.fpn_convs), strict=True):
            summed = lateral + resize(summed, lateral.shape[-2:], self.align_corners)
            levels.insert(0, smooth(summed))
        size = levels[0].shape[-2:]
        fused = torch.cat([resize(level, size, self.align_corners) for level in levels], 1)
        return self.conv_seg(self.dropout(self.fpn_bottleneck(fused)))
