"""The plain convolutional decode head, usually the auxiliary one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from zoo.nn.heads.blocks import ConvBNReLU
from zoo.nn.heads.classifier import pixel_classifier


class FCNHead(nn.Module):
    """One 3×3 convolution and a classifier on one map: after Long et al., "FCN" (CVPR 2015).

    The literature trains it beside the main head, on the last but one map and with a weight of 0.4. Parameter
    names are those of MMSegmentation.

    Args:
        channels: channels of the maps, fine to coarse.
        num_classes: channels of the logits.
        width: channels of the hidden map.
        source: which map is used; -1 is the coarsest.
        bias: the hidden convolution has a bias in front of batch norm, as in the semi-supervised releases.
        dropout: probability of dropping a whole channel before the classifier.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        width: int = 256,
        source: int = -1,
        bias: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.source = source
        self.conv_seg = pixel_classifier(width, num_classes)
        self.convs = nn.Sequential(ConvBNReLU(channels[source], width, 3, bias=bias))
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps, fine to coarse → logits ``[B, num_classes, h, w]`` of the ``source`` map."""
        return self.conv_seg(self.dropout(self.convs(features[self.source])))
