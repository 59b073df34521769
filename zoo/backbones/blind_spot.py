"""The trunk of the conditional blind-spot network (Jang et al., ICCV 2023, arXiv 2304.09507)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.nn.blind_spot import MaskedConv2d, initialise
from zoo.registry import register_backbone


class DilatedModule(nn.Module):
    """``x + relu(conv 1x1(relu(dilated conv 3x3(x))))``; nothing after the addition.

    Args:
        width: channels.
        dilation: of the 3x3 convolution.
    """

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, width, H, W]`` to the same."""
        return x + self.conv2(self.conv1(x).relu()).relu()


class BlindBranch(nn.Module):
    """A masked convolution, and then only steps that its dilation leaves blind.

    The masked kernel of side k reaches offsets of 1 to k // 2; all further convolutions move by multiples of
    ``k // 2 + 1``, so no path leads back to the pixel itself.

    Args:
        width: channels.
        modules: :class:`DilatedModule` in a row.
        kernel: side of the masked kernel: 3 (dilation 2) or 5 (dilation 3).
    """

    def __init__(self, width: int, modules: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = MaskedConv2d(width, width, kernel)
        self.conv2, self.conv3, self.conv4 = (nn.Conv2d(width, width, 1) for _ in range(3))
        self.blocks = nn.Sequential(*(DilatedModule(width, kernel // 2 + 1) for _ in range(modules)))

    def forward(self, x: Tensor, blind: bool) -> Tensor:
        """Maps ``[B, width, H, W]`` to the same."""
        x = self.conv2(self.conv1(x, blind).relu()).relu()
        return self.conv4(self.blocks(self.conv3(x).relu())).relu()


class ConditionalBlindSpot(nn.Module):
    """Two branches that may be blind to the pixel they describe, with the same weights either way.

    Initial weights are normal with variance ``2 / fan_in``, truncated except for the masked kernels; biases are 0.

    Args:
        in_chans: channels of the image.
        width: C, channels of a branch.
        modules: dilated modules of a branch.

    Raises:
        ValueError: a number out of range.
    """

    #: ``forward_features`` takes ``blind``.
    has_blind_mode = True

    def __init__(self, in_chans: int = 3, width: int = 128, modules: int = 9) -> None:
        super().__init__()
        if min(in_chans, width) < 1 or modules < 0:
            raise ValueError(
                f"in_chans={in_chans} and width={width} must be at least 1, modules={modules} at least 0"
            )
        self.in_chans, self.channels, self.strides = in_chans, (2 * width,), (1,)
        self.mean, self.std = (0.0,) * in_chans, (1.0,) * in_chans
        self.stem = nn.Conv2d(in_chans, width, 1)
        self.branch1, self.branch2 = BlindBranch(width, modules, 3), BlindBranch(width, modules, 5)
        initialise(self)

    def forward_features(self, image: Tensor, blind: bool = False) -> list[Tensor]:
        """One map ``[B, 2 * width, H, W]`` of normalised images ``[B, in_chans, H, W]``.

        Args:
            image: normalised by its own statistics, :func:`zoo.nn.blind_spot.image_statistics`.
            blind: leave the pixel itself out of what describes it.
        """
        x = self.stem(image).relu()
        return [torch.cat((self.branch1(x, blind), self.branch2(x, blind)), 1)]

    forward = forward_features


@register_backbone("blind_spot")
def blind_spot(
    pretrained: bool = False, in_chans: int = 3, width: int = 128, modules: int = 9
) -> ConditionalBlindSpot:
    """Build a :class:`ConditionalBlindSpot`.

    Raises:
        ValueError: ``pretrained``, for there are no weights that could be read.
    """
    if pretrained:
        raise ValueError("blind_spot has no pretrained weights: set pretrained to false")
    return ConditionalBlindSpot(in_chans, width, modules)
