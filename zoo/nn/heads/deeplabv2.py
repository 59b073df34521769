"""The decode head of DeepLab-V2: parallel dilated classifiers, summed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from zoo.nn.heads.classifier import pixel_classifier


class DeepLabV2Head(nn.Module):
    """Sum of dilated 3×3 classifiers on the coarsest map: Chen et al., "DeepLab" (TPAMI 2018), section 3.2.

    The domain-adaptation literature, FST included, uses the reduced form with dilations 6 and 12; the
    semi-supervised one 6, 12, 18 and 24. It belongs on a ResNet with ``output_stride=8``. Parameter names are
    those of the released checkpoints.

    Args:
        channels: channels of the maps, fine to coarse; the last one is used.
        num_classes: channels of the logits.
        dilations: one classifier each.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, dilations: Sequence[int] = (6, 12)) -> None:
        super().__init__()
        self.aspp_modules = nn.ModuleList(
            DilatedClassifier(channels[-1], num_classes, dilation) for dilation in dilations
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps, fine to coarse → logits ``[B, num_classes, h, w]`` of the coarsest one."""
        first, *others = [branch(features[-1]) for branch in self.aspp_modules]
        return sum(others, first)


class DilatedClassifier(nn.Sequential):
    """A dilated 3×3 convolution to class logits; the child is called ``conv`` as in released files."""

    def __init__(self, inputs: int, num_classes: int, dilation: int) -> None:
        super().__init__()
        self.conv = pixel_classifier(inputs, num_classes, 3, dilation)
