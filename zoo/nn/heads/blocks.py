"""What decode heads are made of; children are called ``conv`` and ``bn`` as in released files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.ranks import rank_count


def resize(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Resize maps ``[B, C, h, w]`` bilinearly to ``size`` (height, width); nothing happens if they have it."""
    if x.shape[-2:] == torch.Size(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=align_corners)


class ConvBNReLU(nn.Sequential):
    """Convolution that keeps the size, batch norm, ReLU.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: side of the kernel, odd.
        dilation: of the kernel.
        groups: of the channels.
        bias: of the convolution. Batch norm cancels it; some released files have one.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=bias
        )
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")


class SeparableConv(nn.Sequential):
    """Depth-wise 3×3 with dilation, then point-wise, each with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise_conv = ConvBNReLU(inputs, inputs, 3, dilation, groups=inputs)
        self.pointwise_conv = ConvBNReLU(inputs, outputs)


class PooledConv(nn.Sequential):
    """Average pooling to ``bins × bins`` cells, then a 1×1 convolution with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, bins: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(bins), ConvBNReLU(inputs, outputs))
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, inputs, h, w]`` → ``[B, outputs, bins, bins]``.

        Raises:
            ValueError: batch norm would have to normalise a single value: one image and one cell in training.
        """
        norm = self.get_submodule("1.bn")
        ranks = rank_count() if isinstance(norm, nn.SyncBatchNorm) else 1
        if norm.training and len(x) * ranks * self.bins**2 == 1:
            raise ValueError(
                "a batch of one image cannot be trained with a decode head that pools the whole image "
                "(deeplabv3plus, pspnet, upernet): batch norm sees a single value per channel. Set "
                "data.batch_size to 2 or more, trainer.sync_batchnorm to true on several devices, or take "
                "another decode_head"
            )
        return super().forward(x)
