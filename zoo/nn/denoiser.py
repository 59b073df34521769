"""A blind-spot network with its head, and how it denoises whole images (C-BSN, arXiv 2304.09507)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zoo.nn.blind_spot import image_statistics, initialise, reflect_pad


class BlindSpotNetwork(nn.Module):
    """A trunk that may be blind, and 1x1 convolutions that name the pixel's colour.

    Args:
        backbone: a :class:`zoo.backbones.ConditionalBlindSpot`.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        both, outputs = backbone.channels[0], backbone.in_chans
        self.head = nn.Sequential(
            *(nn.Conv2d(both, both // 2, 1), nn.ReLU(), nn.Conv2d(both // 2, 64, 1), nn.ReLU()),
            *(nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, outputs, 1)),
        )
        initialise(self.head)

    def forward(self, image: Tensor, blind: bool = False) -> Tensor:
        """Normalised images ``[B, C, H, W]`` without their noise."""
        return self.head(self.backbone.forward_features(image, blind)[0])


class Denoiser(nn.Module):
    """A network for whole images as they are (inference of the card).

    Args:
        network: normalised images in, normalised images or maps out.
        blind: use its blind mode.
        padding: pixels of mirror image around.
        restores: whether it answers with images, to be de-normalised and clipped to [0, 1].
    """

    def __init__(self, network: nn.Module, blind: bool, padding: int, restores: bool = True) -> None:
        super().__init__()
        self.network, self.blind, self.padding, self.restores = network, blind, padding, restores
        self.outputs = ("denoised",) if restores else ("map0",)

    def forward(self, image: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` in [0, 1]."""
        mean, std = image_statistics(image)
        if not self.restores:
            return self.network((image - mean) / std, self.blind)[0]
        H, W = image.shape[-2:]
        found = self.network(reflect_pad((image - mean) / std, self.padding), self.blind)
        top, left = (found.shape[-2] - H) // 2, (found.shape[-1] - W) // 2
        return (found[..., top : top + H, left : left + W] * std + mean).clamp(0, 1)
