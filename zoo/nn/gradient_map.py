"""Gradient maps of images and volumes: a 5-tap Sobel operator in 8-bit arithmetic, the second target of Uni4Eye.

The numbers are those of OpenCV's ``Sobel(ksize=5)``, ``convertScaleAbs`` and ``addWeighted(0.5, 0.5)`` on a grey image
of 0..255, which the released code calls. It calls them on floats in [0, 1], where 16-bit integers are all but 0; here
grey values are brought to 0..255 first and the map back to [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

VolumeGradient = Literal["slices", "volume"]

_SMOOTH = (1.0, 4.0, 6.0, 4.0, 1.0)
_DERIVE = (-1.0, -2.0, 0.0, 2.0, 1.0)
#: Rec. 601 in units of 2^-15, as OpenCV weighs 8-bit channels.
_GREY = (9798.0, 19235.0, 3735.0)


@torch.no_grad()
def gradient_map(x: Tensor, of_volumes: VolumeGradient = "slices") -> Tensor:
    """Half the sum of absolute Sobel responses in x and y, each cut off at 255, rounded half to even.

    Volumes are not in the release. ``slices`` takes the same operator in every slice across the middle axis, the
    short one of Uni4Eye; ``volume`` the mean of three responses, smoothed along both other axes with the gain of two
    dimensions, so that a volume that is constant along an axis has responses as its slices have.

    Args:
        x: images ``[B, 3, H, W]`` or ``[B, 1, H, W]``, or volumes ``[B, 1, X, Y, Z]``, float in [0, 1].
        of_volumes: as above.

    Returns:
        Float32 ``[B, 1, *sides]`` in [0, 1], multiples of 1/255.

    Raises:
        ValueError: another shape, or a side below 3, which borders cannot be mirrored at.
    """
    axes = (2, 3) if x.ndim == 4 else (2, 4) if of_volumes == "slices" else (2, 3, 4)
    if x.ndim not in (4, 5) or x.shape[1] not in (1, 3) or (x.ndim == 5 and x.shape[1] != 1):
        raise ValueError(
            f"gradient_map takes images [B, 3 or 1, H, W] or volumes [B, 1, X, Y, Z], got {list(x.shape)}"
        )
    if min(x.shape[axis] for axis in axes) < 3:
        raise ValueError(f"a gradient map needs sides of at least 3, got {list(x.shape[2:])}")
    grey = grey_levels(x)
    total = torch.zeros_like(grey)
    for axis in axes:
        total += _response(grey, axis, axes).abs_().clamp_(max=255)
    return total.div_(len(axes)).round_().div_(255)


def grey_levels(x: Tensor) -> Tensor:
    """Whole grey levels 0..255, float32 ``[B, 1, *sides]``, of values in [0, 1]; three channels are weighed as RGB."""
    levels = x.float().mul(255).round_().clamp_(0, 255)
    if x.shape[1] == 1:
        return levels
    weights = torch.tensor(_GREY, device=x.device).view(1, 3, *(1 for _ in x.shape[2:]))
    return (levels * weights).sum(1, keepdim=True).add_(2.0**14).mul_(2.0**-15).floor_()


def _response(grey: Tensor, axis: int, axes: Sequence[int]) -> Tensor:
    """The derivative along one axis, smoothed along the others; whole numbers for two axes."""
    response = _along(grey, axis, _DERIVE)
    for other in axes:
        if other != axis:
            response = _along(response, other, _SMOOTH)
    return response if len(axes) == 2 else response.div_(sum(_SMOOTH) ** (len(axes) - 2))


def _along(x: Tensor, axis: int, taps: Sequence[float]) -> Tensor:
    """Correlation with five taps along one axis; borders are mirrored without repeating the last value.

    Added up in place, where the taps' products are whole numbers, whose order does not matter.
    """
    length = x.shape[axis]
    mirrored = [x.narrow(axis, at, 1) for at in (2, 1, length - 2, length - 3)]
    lines = torch.cat((*mirrored[:2], x, *mirrored[2:]), axis)
    total = torch.zeros_like(x)
    for at, tap in enumerate(taps):
        if tap:
            total.add_(lines.narrow(axis, at, length), alpha=tap)
    return total
