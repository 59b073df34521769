"""ResNets as DeepLab uses them: dilation in place of the last strides, optionally in a multi-grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from zoo.backbones.timm import TimmBackbone
from zoo.registry import register_backbone

Stem = Literal["plain", "v1c", "wide"]
#: What timm appends to `resnet101` for the same stem.
_STEMS: dict[str, str] = {"plain": "", "v1c": "c", "wide": "s"}

#: Names in released files → names of :class:`DeepLabResNet`, (pattern, replacement), applied in order.
#: ``stem.*`` is MMSegmentation's v1c; torchvision's names and those of the semi-supervised releases (U2PL, FST)
#: are timm's already.
RESNET_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^stem\.7\.", "bn1."),
    (r"^stem\.", "conv1."),
    (r"^", "model."),
)
#: Names in released files that belong to no encoder: the ImageNet classifier.
RESNET_IGNORED = r"^fc\."


class DeepLabResNet(TimmBackbone):
    """timm's ResNet with stages 3 and 4 dilated; gives the maps of the four stages, at 4, 8, 8 and 8 pixels.

    Chen et al., "Rethinking Atrous Convolution" (2017), section 3. The dilation is contracted, as in
    MMSegmentation and torchvision: the first block of a stage keeps the dilation of the stage before.

    The domain-adaptation literature uses the defaults, the semi-supervised one (U2PL, FST)
    ``stem="wide", multi_grid=(2, 2, 4), ceil_mode=True``.

    Args:
        depth: 50 or 101.
        pretrained: load timm's ImageNet weights of the same stem.
        in_chans: channels of the input image.
        output_stride: 8, or 16 (only stage 4 is dilated).
        stem: ``plain`` is one 7×7 convolution; ``v1c`` three 3×3 ones of 32, 32 and 64 channels; ``wide`` of
            64, 64 and 128.
        multi_grid: factors on the dilation of the three blocks of stage 4.
        ceil_mode: round sizes up in the stem's max pooling: one more row and column where the input is even.
        **kwargs: handed to timm's ResNet.

    Raises:
        ValueError: an unknown ``depth``, ``stem`` or ``output_stride``, or a ``multi_grid`` that is not three
            positive factors.
    """

    def __init__(
        self,
        depth: Literal[50, 101] = 101,
        pretrained: bool = False,
        in_chans: int = 3,
        output_stride: Literal[8, 16] = 8,
        stem: Stem = "v1c",
        multi_grid: Sequence[int] = (1, 1, 1),
        ceil_mode: bool = False,
        **kwargs: Any,
    ) -> None:
        _check("depth", depth, (50, 101))
        _check("output_stride", output_stride, (8, 16))
        _check("stem", stem, tuple(_STEMS))
        if len(multi_grid) != 3 or min(multi_grid) < 1:
            raise ValueError(
                f"multi_grid must be three factors of at least 1, one per block of stage 4, got {list(multi_grid)}"
            )
        super().__init__(
            f"resnet{depth}{_STEMS[stem]}",
            pretrained,
            in_chans,
            output_stride=output_stride,
            out_indices=(1, 2, 3, 4),
            **kwargs,
        )
        for block, factor in zip(self.model.layer4, multi_grid, strict=True):
            block.conv2.dilation = block.conv2.padding = tuple(factor * d for d in block.conv2.dilation)
        self.model.maxpool.ceil_mode = ceil_mode
        #: Whether timm computes the same under this name.
        self.is_plain = tuple(multi_grid) == (1, 1, 1) and not ceil_mode


def _check(argument: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _factory(depth: Literal[50, 101]) -> Callable[..., DeepLabResNet]:
    def create(pretrained: bool = False, in_chans: int = 3, **kwargs: Any) -> DeepLabResNet:
        return DeepLabResNet(depth, pretrained, in_chans, **kwargs)

    create.__name__ = create.__qualname__ = f"resnet{depth}_deeplab"
    create.__doc__ = f"""Build a :class:`DeepLabResNet` of depth {depth}; the arguments are its own."""
    return create


register_backbone("resnet50_deeplab")(_factory(50))
register_backbone("resnet101_deeplab")(_factory(101))
