"""One picture as a network takes it: from PIL, NumPy or torch, prepared as the benchmark prepares its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.image_sizes import centre_window, resized, short_side_size
from datamodules.readers import rescaled, scaled_size

Picture = Image.Image | np.ndarray | Tensor


def as_pixels(image: Picture) -> Tensor:
    """``[3, H, W]``, uint8 or float in [0, 1].

    Args:
        image: PIL image; array ``[H, W, 3]`` or tensor ``[3, H, W]``, uint8 or float in [0, 1].

    Raises:
        ValueError: another shape or type, or floats outside [0, 1].
    """
    if isinstance(image, Image.Image):
        image = np.array(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"image has shape {image.shape}: expected one RGB array, [H, W, 3]")
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"image has shape {tuple(image.shape)}: expected one RGB image, [3, H, W]")
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise ValueError(f"image is {image.dtype}: expected uint8, or float in [0, 1]")
    low, high = float(image.min()), float(image.max())
    if not -1e-3 <= low <= high <= 1 + 1e-3:
        raise ValueError(
            f"image holds floats from {low:.4g} to {high:.4g}: expected [0, 1]. Divide by 255, and leave the "
            "normalisation to the network"
        )
    return image.float()


def prepared(image: Picture, preprocessing: Mapping[str, Any], device: torch.device) -> Tensor:
    """A batch of one ``[1, 3, h, w]``, float in [0, 1].

    Args:
        image: see :func:`as_pixels`.
        preprocessing: of the benchmark: ``resize`` (bounds of the long and the short side), or ``short_side`` and
            ``crop`` (of a square from the middle), or ``size`` (height and width); empty leaves the picture as it is.
        device: where to.

    Raises:
        ValueError: see :func:`as_pixels`; a picture smaller than the crop.
    """
    pixels = as_pixels(image).to(device)[None]
    height, width = pixels.shape[-2:]
    if "resize" in preprocessing:
        pixels = rescaled(pixels, scaled_size(height, width, preprocessing["resize"]))
    if "size" in preprocessing and (height, width) != tuple(preprocessing["size"]):
        pixels = resized(pixels, preprocessing["size"])
    if "short_side" in preprocessing:
        pixels = resized(pixels, short_side_size(height, width, preprocessing["short_side"]))
    if "crop" in preprocessing:
        rows, columns = centre_window(pixels.shape[-2], pixels.shape[-1], preprocessing["crop"])
        pixels = pixels[..., rows, columns]
    # bicubic resampling of floats overshoots; of uint8 torch clips by itself
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.clamp(0, 1)
