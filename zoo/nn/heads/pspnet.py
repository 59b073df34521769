"""The decode head of PSPNet: the coarsest map beside its averages over grids of several sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.nn.heads.blocks import ConvBNReLU, PooledConv, resize
from zoo.nn.heads.classifier import pixel_classifier


class PyramidPooling(nn.ModuleList):
    """A map concatenated with its averages over ``bins × bins`` cells, each projected to ``width`` channels."""

    def __init__(self, inputs: int, width: int, bins: Sequence[int], align_corners: bool = False) -> None:
        super().__init__(PooledConv(inputs, width, count) for count in bins)
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, inputs, h, w]`` → ``[B, inputs + len(bins) * width, h, w]``.

        Raises:
            ValueError: a batch of one image in training (see :class:`zoo.nn.heads.blocks.PooledConv`).
        """
        pooled = (resize(pool(x), x.shape[-2:], self.align_corners) for pool in self)
        return torch.cat([x, *pooled], 1)


class PSPHead(nn.Module):
    """Zhao et al., "Pyramid Scene Parsing Network" (CVPR 2017), section 3.2, without its auxiliary loss.

    It belongs on a ResNet with ``output_stride=8``. Parameter names are those of MMSegmentation.

    Args:
        channels: channels of the maps, fine to coarse; the last one is used.
        num_classes: channels of the logits.
        width: channels of each pooled branch and of the bottleneck.
        bins: cells per side of each pooled branch.
        dropout: probability of dropping a whole channel before the classifier.
        align_corners: of the upsampling inside the head.
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
        self.conv_seg = pixel_classifier(width, num_classes)
        self.psp_modules = PyramidPooling(channels[-1], width, bins, align_corners)
        self.bottleneck = ConvBNReLU(channels[-1] + len(bins) * width, width, 3)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps, fine to coarse → logits ``[B, num_classes, h, w]`` of the coarsest one."""
        return self.conv_seg(self.dropout(self.bottleneck(self.psp_modules(features[-1]))))


class PSPShuffleHead(PSPHead):
    """PSPNet as the semi-supervised literature has it: logits are upsampled by learnt sub-pixel convolutions.

    The FST card, section 5.4: no dropout, a classifier without bias, then ``doublings`` times a 1×1 convolution
    to four times the classes, ReLU and pixel shuffle. These start as nearest-neighbour upsampling (Aitken et
    al., "Checkerboard artifact free sub-pixel convolution", 2017).

    Args:
        channels: channels of the maps, fine to coarse; the last one is used.
        num_classes: channels of the logits.
        width: channels of each pooled branch and of the bottleneck.
        bins: cells per side of each pooled branch.
        doublings: how often the resolution is doubled.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        width: int = 512,
        bins: Sequence[int] = (1, 2, 3, 6),
        doublings: int = 3,
    ) -> None:
        super().__init__(channels, num_classes, width, bins, dropout=0.0)
        self.conv_seg = nn.Conv2d(width, num_classes, 1, bias=False)
        self.upsample = nn.Sequential(*(SubPixelDoubling(num_classes) for _ in range(doublings)))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps, fine to coarse → logits at ``2 ** doublings`` times the coarsest map's resolution."""
        return self.upsample(super().forward(features))


class SubPixelDoubling(nn.Sequential):
    """1×1 convolution to four times the channels, ReLU, pixel shuffle: ``[B, C, h, w]`` → ``[B, C, 2h, 2w]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 1)
        self.relu = nn.ReLU(inplace=True)
        self.shuffle = nn.PixelShuffle(2)
        one_of_four = nn.init.kaiming_normal_(torch.empty(channels, channels, 1, 1))
        self.conv.weight = nn.Parameter(one_of_four.repeat_interleave(4, 0))
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)
