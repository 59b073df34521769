"""The network of the embedded benchmarks: small enough to be trained in minutes on one CPU core."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from zoo.registry import register_backbone


class StreetCNN(nn.Module):
    """Plain convolutions with batch norm and ReLU: maps at strides 2, 4, 8 and 16, no pretrained weights.

    The finest map keeps half the image's resolution, for poles two pixels wide.

    Args:
        in_chans: channels of the input image.
        widths: channels of the four maps.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(self, in_chans: int = 3, widths: Sequence[int] = (32, 48, 96, 96)) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.channels = tuple(widths)
        self.strides = tuple(2 ** (i + 1) for i in range(len(widths)))
        self.mean, self.std = (0.45,) * in_chans, (0.25,) * in_chans
        inputs = (in_chans, *widths)
        self.stages = nn.ModuleList(
            nn.Sequential(*_conv(inputs[i], width, stride=2), *_conv(width, width, stride=1))
            for i, width in enumerate(widths)
        )

    def forward_features(self, image: Tensor) -> list[Tensor]:
        """Normalised images ``[B, in_chans, H, W]`` → maps ``[B, channels[i], h_i, w_i]``, fine to coarse."""
        maps = [image]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    forward = forward_features


@register_backbone("street_cnn")
def street_cnn(pretrained: bool = False, in_chans: int = 3, **kwargs: Sequence[int]) -> StreetCNN:
    """Build a :class:`StreetCNN`.

    Raises:
        ValueError: ``pretrained``, for there are no weights.
    """
    if pretrained:
        raise ValueError("street_cnn has no pretrained weights: set pretrained to false")
    return StreetCNN(in_chans, **kwargs)


def _conv(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
