"""Photometric operations of torchvision on whole batches: every image has strengths and an order of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.nn.color import turn_hue

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in torchvision's grey."""


def grey(image: Tensor) -> Tensor:
    """Luma of ``[n, 3, H, W]``: ``[n, 1, H, W]``."""
    red, green, blue = image.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def jitter(image: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of torchvision's ``ColorJitter``, in place.

    Brightness scales; contrast blends with the image's mean grey; saturation blends with each pixel's grey; hue
    turns H of HSV. Each is clamped to [0, 1]. All images that have the same operation in the same place of
    their order are taken together.

    Args:
        image: float ``[n, 3, H, W]`` in [0, 1].
        factors: of brightness, contrast and saturation, and turns of hue, ``[n, 4]``, on the host.
        order: for every image what happens first, second, ...: a permutation of 0..3, ``[n, 4]``, on the host.
    """
    operations = (_brightness, _contrast, _saturation, _hue)
    for place in range(4):
        for number, operation in enumerate(operations):
            rows = (order[:, place] == number).nonzero().flatten()
            if len(rows):
                factor = factors[rows, number].to(image.device, non_blocking=True).view(-1, 1, 1, 1)
                index = rows.to(image.device, non_blocking=True)
                image.index_copy_(0, index, operation(image.index_select(0, index), factor))
    return image


def solarize(image: Tensor, threshold: float) -> Tensor:
    """Invert what is at least ``threshold`` (in [0, 1])."""
    return torch.where(image >= threshold, 1.0 - image, image)


def _brightness(image: Tensor, factor: Tensor) -> Tensor:
    return image.mul_(factor).clamp_(0.0, 1.0)


def _contrast(image: Tensor, factor: Tensor) -> Tensor:
    mean = grey(image).mean((1, 2, 3), keepdim=True)
    return image.mul_(factor).add_((1.0 - factor) * mean).clamp_(0.0, 1.0)


def _saturation(image: Tensor, factor: Tensor) -> Tensor:
    luma = grey(image).mul_(1.0 - factor)
    return image.mul_(factor).add_(luma).clamp_(0.0, 1.0)


def _hue(image: Tensor, turns: Tensor) -> Tensor:
    return turn_hue(image.transpose(0, 1), turns.view(-1, 1, 1)).transpose(0, 1)
