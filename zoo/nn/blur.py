"""Separable Gaussian blur with one sigma per image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def blur_kernel_size(side: int) -> int:
    """Return the odd Gaussian kernel length that DACS uses for an image side of ``side`` pixels.

    ``floor(ceil(0.1 s) - 0.5 + ceil(0.1 s) mod 2)``: 512 → 51, 640 → 63.
    """
    tenth = math.ceil(0.1 * side)
    return math.floor(tenth - 0.5 + tenth % 2)


def gaussian_blur(image: Tensor, sigma: Tensor | float, kernel_size: int | tuple[int, int]) -> Tensor:
    """Blur each image with its own Gaussian; borders are reflected.

    Reflection cannot reach further than the image does: a kernel longer than ``2 * side - 1`` is cut to that.

    Args:
        image: float ``[B, C, H, W]``.
        sigma: standard deviation in pixels, one number or ``[B]``.
        kernel_size: odd length, or (vertical, horizontal).

    Returns:
        The blurred images, ``[B, C, H, W]``.
    """
    sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    if any(size < 1 or size % 2 == 0 for size in sizes):
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
    B, C, H, W = image.shape
    sigmas = torch.as_tensor(sigma, dtype=torch.float32, device=image.device).expand(B)
    vertical = _kernels(sigmas, min(sizes[0], 2 * H - 1)).to(image.dtype)
    horizontal = _kernels(sigmas, min(sizes[1], 2 * W - 1)).to(image.dtype)

    # A batch of one image with B*C channels, so that every image can have a kernel of its own.
    planes = image.reshape(1, B * C, H, W)
    pad_y, pad_x = vertical.shape[1] // 2, horizontal.shape[1] // 2
    planes = F.pad(planes, (pad_x, pad_x, pad_y, pad_y), mode="reflect")
    planes = F.conv2d(planes, vertical.repeat_interleave(C, 0)[:, None, :, None], groups=B * C)
    planes = F.conv2d(planes, horizontal.repeat_interleave(C, 0)[:, None, None, :], groups=B * C)
    return planes.reshape(B, C, H, W)


def _kernels(sigma: Tensor, size: int) -> Tensor:
    """Return normalised Gaussians ``[B, size]``."""
    offset = torch.arange(size, device=sigma.device, dtype=sigma.dtype) - size // 2
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    return kernel / kernel.sum(1, keepdim=True)
