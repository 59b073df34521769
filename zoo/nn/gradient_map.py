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
    first, *others = [r.abs_().clamp_(max=255) for r in _responses(_mirrored(grey_levels(x), axes), axes)]
    for other in others:
        first += other
    return first.float().div_(len(axes)).round_().div_(255)


def grey_levels(x: Tensor) -> Tensor:
    """Whole grey levels 0..255, float32 ``[B, 1, *sides]``, of values in [0, 1]; three channels are weighed as RGB."""
    levels = x.float().mul(255).round_().clamp_(0, 255)
    if x.shape[1] == 1:
        return levels
    weights = torch.tensor(_GREY, device=x.device).view(1, 3, *(1 for _ in x.shape[2:]))
    return (levels * weights).sum(1, keepdim=True).add_(2.0**14).mul_(2.0**-15).floor_()


def _mirrored(grey: Tensor, axes: Sequence[int]) -> Tensor:
    """Grey levels with two more at both ends of every axis, mirrored without repeating the last one.

    Of two axes all responses fit 16-bit integers, as in OpenCV; of three they are whole numbers in float32.
    """
    sides = [side + 4 if axis in axes else side for axis, side in enumerate(grey.shape)]
    lines = grey.new_empty(sides, dtype=torch.int16 if len(axes) == 2 else torch.float32)
    inside = lines
    for axis in axes:
        inside = inside.narrow(axis, 2, grey.shape[axis])
    inside.copy_(grey)
    for done, axis in enumerate(axes):
        rows = lines
        for later in axes[done + 1 :]:  # their ends are mirrored in their turn
            rows = rows.narrow(later, 2, grey.shape[later])
        end = rows.shape[axis] - 1
        for to, of in ((0, 4), (1, 3), (end, end - 4), (end - 1, end - 3)):
            rows.narrow(axis, to, 1).copy_(rows.narrow(axis, of, 1))
    return lines


def _responses(lines: Tensor, axes: Sequence[int]) -> list[Tensor]:
    """For every axis the derivative along it, taps (-1, -2, 0, 2, 1), smoothed along the others by (1, 4, 6, 4, 1).

    Both begin with (1, 2, 1), so that one sum serves the derivative along an axis and the smoothing for the others.
    """
    found: list[Tensor] = []
    for axis in axes:
        found = [_smoothed(_binomial(response, axis), axis) for response in found]
        binomial = _binomial(lines, axis)
        sides = binomial.shape[axis] - 2
        found.append(binomial.narrow(axis, 2, sides) - binomial.narrow(axis, 0, sides))
        if axis != axes[-1]:
            lines = _smoothed(binomial, axis)
    return found if len(axes) == 2 else [response.div_(16.0 ** (len(axes) - 2)) for response in found]


def _binomial(x: Tensor, axis: int) -> Tensor:
    """Sums with the taps (1, 2, 1): two entries fewer along the axis."""
    for _ in range(2):
        x = x.narrow(axis, 0, x.shape[axis] - 1) + x.narrow(axis, 1, x.shape[axis] - 1)
    return x


def _smoothed(binomial: Tensor, axis: int) -> Tensor:
    """The same taps once more, which makes (1, 4, 6, 4, 1)."""
    sides = binomial.shape[axis] - 2
    ends = binomial.narrow(axis, 0, sides) + binomial.narrow(axis, 2, sides)
    return ends.add_(binomial.narrow(axis, 1, sides), alpha=2)
