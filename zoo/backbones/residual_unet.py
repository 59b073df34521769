"""The encoder of a 3-D residual U-Net."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from zoo.extras import require
from zoo.registry import register_backbone


class ResidualUNetEncoder(nn.Module):
    """Residual blocks of two 3×3×3 convolutions, instance norm and leaky ReLU; every stage after the first halves.

    The blocks are MONAI's (those of its DynUNet); widths as in nnU-Net (Isensee et al., 2021).

    Args:
        in_chans: channels of the volume.
        widths: channels of the maps, at strides 1, 2, 4, ...
        blocks: residual blocks of every stage.

    Raises:
        ImportError: MONAI is not installed.
        ValueError: no stage or no block.
    """

    def __init__(
        self, in_chans: int = 1, widths: Sequence[int] = (32, 64, 128, 256, 320), blocks: int = 1
    ) -> None:
        super().__init__()
        if not widths or blocks < 1:
            raise ValueError(f"widths={list(widths)} and blocks={blocks}: at least one of each is needed")
        block = require("monai.networks.blocks", "medical", "residual_unet").UnetResBlock
        self.in_chans = in_chans
        self.channels = tuple(widths)
        self.strides = tuple(2**stage for stage in range(len(widths)))
        self.mean, self.std = (0.0,) * in_chans, (1.0,) * in_chans
        norm = ("instance", {"affine": True})
        self.stages = nn.ModuleList()
        for stage, (inputs, width) in enumerate(zip((in_chans, *widths), widths, strict=False)):
            first = block(3, inputs, width, kernel_size=3, stride=2 if stage else 1, norm_name=norm)
            rest = (
                block(3, width, width, kernel_size=3, stride=1, norm_name=norm) for _ in range(blocks - 1)
            )
            self.stages.append(nn.Sequential(first, *rest))

    def forward_features(self, volume: Tensor) -> list[Tensor]:
        """Volumes ``[B, in_chans, X, Y, Z]`` → maps ``[B, channels[i], ...]``, fine to coarse.

        Raises:
            ValueError: another number of channels or axes, or a side that is no multiple of the coarsest stride, or
                no larger than it.
        """
        if volume.dim() != 5 or volume.shape[1] != self.in_chans:
            raise ValueError(f"volume has shape {list(volume.shape)}: expected [B, {self.in_chans}, X, Y, Z]")
        stride = self.strides[-1]
        if any(side % stride or side <= stride for side in volume.shape[2:]):
            raise ValueError(
                f"volumes of {list(volume.shape[2:])} voxels do not fit: sides must be multiples of {stride} and larger"
            )
        maps = []
        for stage in self.stages:
            volume = stage(volume)
            maps.append(volume)
        return maps

    forward = forward_features


@register_backbone("residual_unet")
def residual_unet(
    pretrained: bool = False,
    in_chans: int = 1,
    widths: Sequence[int] = (32, 64, 128, 256, 320),
    blocks: int = 1,
) -> ResidualUNetEncoder:
    """Build a :class:`ResidualUNetEncoder`.

    Raises:
        ValueError: ``pretrained``, for there are no weights.
    """
    if pretrained:
        raise ValueError("residual_unet has no pretrained weights: set pretrained to false")
    return ResidualUNetEncoder(in_chans, widths, blocks)
