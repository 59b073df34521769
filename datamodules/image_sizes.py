"""Sizes of images: resizing by one side, central squares, and padding to a common square."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.readers import RandomCrop


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images ``[B,C,H,W]`` uint8 resized to ``size`` (height, width): bicubic and antialiased."""
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)


def shrunk(image: Tensor, short_side: int | None) -> Tensor:
    """Image ``[3,H,W]`` uint8 whose short side is so long, see :func:`resized`; None keeps its size."""
    if short_side is None:
        return image
    return resized(image[None], short_side_size(image.shape[1], image.shape[2], short_side))[0]


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width of an image whose short side becomes ``short_side``; the aspect ratio is kept."""
    height, width = (max(short_side, round(n * short_side / min(height, width))) for n in (height, width))
    return height, width


def fitted(image: Tensor, longest_side: int | None) -> Tensor:
    """Image ``[3,H,W]`` uint8 whose longer side is at most so long, see :func:`resized`; others keep their size."""
    height, width = image.shape[1:]
    longer = max(height, width)
    if longest_side is None or longer <= longest_side:
        return image
    height, width = (max(1, round(n * longest_side / longer)) for n in (height, width))
    return resized(image[None], (height, width))[0]


def padded(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Images of many sizes in one tensor.

    Args:
        images: ``[3,h,w]`` uint8 each.

    Returns:
        The images in the top left corners of black squares ``[B,3,S,S]`` uint8, S the longest side of all, and
        their sizes (height, width), int64 ``[B,2]``.
    """
    size = torch.tensor([image.shape[1:] for image in images])
    side = int(size.max())
    squares = torch.zeros(len(images), 3, side, side, dtype=torch.uint8)
    for square, image in zip(squares, images, strict=True):
        square[:, : image.shape[1], : image.shape[2]] = image
    return squares, size


def centre_window(height: int, width: int, side: int) -> tuple[slice, slice]:
    """The middle square of an image.

    Raises:
        ValueError: the image is smaller; said as a random crop says it.
    """
    if height < side or width < side:
        return RandomCrop((side, side)).window((height, width), None, np.random.default_rng(0))
    top, left = round((height - side) / 2), round((width - side) / 2)
    return slice(top, top + side), slice(left, left + side)


def centre_boxes(size: Tensor, crop: int, short_side: int | None) -> Tensor:
    """What evaluation sees of images: the middle ``crop`` pixels after a resize of the short side.

    Args:
        size: (height, width), int64 ``[B,2]``.
        crop: side of the square.
        short_side: length of the short side after the resize; None for no resize.

    Returns:
        (top, left, height, width) of that square in pixels of the images, int64 ``[B,4]``.
    """
    shorter = size.amin(1, keepdim=True)
    share = crop / short_side if short_side else crop / shorter
    side = (shorter * share).round().long().clamp(min=1).minimum(shorter)
    return torch.cat(((size - side) // 2, side, side), 1)
