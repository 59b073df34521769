"""Colour jitter in [0, 1], each image with its own strengths and its own order of operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def color_jitter(
    image: Tensor,
    brightness: Sequence[float],
    contrast: Sequence[float],
    saturation: Sequence[float],
    hue: Sequence[float],
    order: Sequence[Sequence[int]],
) -> Tensor:
    """Change brightness, contrast, saturation and hue, in an order and by factors of each image's own.

    As kornia 0.5.8 did (its later ``ColorJiggle``), hence DACS, DAFormer and FST: brightness adds
    ``brightness - 1`` and contrast multiplies, both clamped to [0, 1]; saturation scales S of HSV, clamped;
    hue turns H.

    Factors and orders are the host's numbers, for it picks the operations: nothing waits for the device.

    Args:
        image: float ``[B, 3, H, W]`` in [0, 1].
        brightness: B numbers, 1 leaves an image as it is.
        contrast: B numbers, 1 leaves an image as it is.
        saturation: B numbers, 1 leaves an image as it is.
        hue: B numbers of turns, 0 leaves an image as it is.
        order: for every image what happens first, second, ...: ``BRIGHTNESS``, ``CONTRAST``, ``SATURATION``
            or ``HUE``.

    Returns:
        ``[B, 3, H, W]`` in [0, 1].
    """
    jittered = []
    for rgb, b, c, s, h, operations in zip(image, brightness, contrast, saturation, hue, order, strict=True):
        for operation in operations:
            if operation == BRIGHTNESS:
                rgb = (rgb + (b - 1)).clamp(0, 1)
            elif operation == CONTRAST:
                rgb = (rgb * c).clamp(0, 1)
            elif operation == SATURATION:
                rgb = scale_saturation(rgb, s)
            else:
                rgb = turn_hue(rgb, h)
        jittered.append(rgb)
    return torch.stack(jittered)


def scale_saturation(rgb: Tensor, factor: float) -> Tensor:
    """Multiply S of HSV, up to 1, in ``[3, *]``: every channel's distance to the largest one scales with S."""
    value, low = rgb.amax(0), rgb.amin(0)
    limit = value / (value - low).clamp(min=1e-8)  # 1 / S
    return value - (value - rgb) * limit.clamp(max=factor)


def turn_hue(rgb: Tensor, turns: float | Tensor) -> Tensor:
    """Turn H of HSV in ``[3, *]`` by ``turns`` (broadcast over ``*``); a grey pixel stays as it is."""
    red, green, blue = rgb
    value, low = rgb.amax(0), rgb.amin(0)
    chroma = value - low
    safe = chroma.clamp(min=1e-8)
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixths = sixths + 6 * turns
    # Over the hue circle each channel is a trapezoid, and the three are two sixths apart.
    position = torch.stack((sixths + 5, sixths + 3, sixths + 1)).remainder(6)
    return value - chroma * torch.minimum(position, 4 - position).clamp(0, 1)
