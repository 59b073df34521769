"""The decode head of DeepLabV3+: ASPP on the coarsest map, refined by a fine one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.nn.heads.aspp import ASPP
from zoo.nn.heads.blocks import ConvBNReLU, SeparableConv, resize
from zoo.nn.heads.classifier import pixel_classifier


class DeepLabV3PlusHead(nn.Module):
    """Chen et al., "Encoder-Decoder with Atrous Separable Convolution" (ECCV 2018), section 3.1.

    The defaults are the network of the semi-supervised literature (U2PL, FST: there with ``bias``); the paper's
    own has ``separable=True, low_level_width=48``. It belongs on a ResNet with ``output_stride`` 8, or 16 and
    halved dilations.

    Args:
        channels: channels of the maps, fine to coarse.
        num_classes: channels of the logits.
        width: channels of ASPP and decoder.
        low_level_width: channels that the fine map is projected to.
        low_level: which map is the fine one; timm's ResNets give their stem first, so 1 there.
        dilations: branches of the ASPP beside image pooling; 1 is a 1×1 convolution.
        separable: 3×3 convolutions of ASPP branches and decoder are depth-wise separable.
        bias: projection and decoder have a bias in front of batch norm, as in the released files; not with
            ``separable``.
        dropout: probability of dropping a whole channel, after ASPP and each decoder convolution.
        align_corners: of the upsampling inside the head.

    Raises:
        ValueError: a single map, no such ``low_level``, or ``bias`` with ``separable``.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        width: int = 256,
        low_level_width: int = 256,
        low_level: int = 0,
        dilations: Sequence[int] = (1, 12, 24, 36),
        separable: bool = False,
        bias: bool = False,
        dropout: float = 0.1,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= low_level < len(channels) - 1:
            raise ValueError(
                f"deeplabv3plus: low_level={low_level} must be a map finer than the last one, but the backbone "
                f"gives {len(channels)} (channels {list(channels)})"
            )
        if bias and separable:
            raise ValueError(
                "deeplabv3plus: bias is not for separable convolutions, set one of them to false"
            )
        self.low_level, self.align_corners = low_level, align_corners

        def conv(inputs: int) -> nn.Module:
            return SeparableConv(inputs, width) if separable else ConvBNReLU(inputs, width, 3, bias=bias)

        self.conv_seg = pixel_classifier(width, num_classes)
        self.low_level_conv = ConvBNReLU(channels[low_level], low_level_width, bias=bias)
        self.aspp = ASPP(channels[-1], width, dilations, separable)
        self.dropout = nn.Dropout2d(dropout)
        self.decoder = nn.Sequential(
            conv(low_level_width + width), nn.Dropout2d(dropout), conv(width), nn.Dropout2d(dropout)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps, fine to coarse → logits ``[B, num_classes, h, w]`` of the ``low_level`` one.

        Raises:
            ValueError: a batch of one image in training (see :class:`zoo.nn.heads.blocks.PooledConv`).
        """
        fine = self.low_level_conv(features[self.low_level])
        context = resize(self.dropout(self.aspp(features[-1])), fine.shape[-2:], self.align_corners)
        return self.conv_seg(self.decoder(torch.cat([fine, context], 1)))
