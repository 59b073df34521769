"""Photometric augmentation of image batches in [0, 1], with strengths of each image's own."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.blur import blur_kernel_size, gaussian_blur
from zoo.nn.color import color_jitter


class PhotometricJitter(nn.Module):
    """Random brightness, contrast, saturation, colour cast and slight blur, drawn per image.

    Brightness multiplies; contrast acts about the image's mean, saturation about each pixel's grey (the mean
    of its channels); then every channel has a gain of its own, a 3×3 binomial blur comes with probability
    ``blur``, and the result is clamped to [0, 1]. All colour changes are affine in a pixel's channels, so
    they are applied as one matrix and offset per image.

    Args:
        brightness: factor within ``1 ± brightness``.
        contrast: factor within ``1 ± contrast``.
        saturation: (least, largest) factor; 0 is grey.
        gain: factor of each channel within ``1 ± gain``.
        blur: probability of the blur.
    """

    def __init__(
        self,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: tuple[float, float] = (0.0, 1.4),
        gain: float = 0.15,
        blur: float = 0.5,
    ) -> None:
        super().__init__()
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self.gain, self.blur = gain, blur

    def forward(self, image: Tensor) -> Tensor:
        """Augment float ``[B, C, H, W]`` in [0, 1]."""
        matrix, offset = self._colour(image)
        image = torch.baddbmm(offset, matrix, image.flatten(2)).view_as(image)

        padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
        rows = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
        blurred = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4
        chosen = torch.rand(len(image), 1, 1, 1, device=image.device) < self.blur
        return torch.where(chosen, blurred, image).clamp(0, 1)

    def _colour(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the colour change: matrices ``[B, C, C]`` and offsets ``[B, C, 1]``."""
        B, C = image.shape[:2]

        def uniform(low: float, high: float, channels: int = 1) -> Tensor:
            return torch.empty(B, channels, 1, device=image.device, dtype=image.dtype).uniform_(low, high)

        brightness = uniform(1 - self.brightness, 1 + self.brightness)
        contrast = uniform(1 - self.contrast, 1 + self.contrast)
        saturation = uniform(*self.saturation)
        gain = uniform(1 - self.gain, 1 + self.gain, C)

        identity = torch.eye(C, device=image.device, dtype=image.dtype)
        matrix = gain * contrast * brightness * (saturation * identity + (1 - saturation) / C)
        # Contrast pulls towards the mean, a grey, which saturation leaves as it is.
        mean = brightness * image.mean((1, 2, 3)).view(B, 1, 1)
        return matrix, gain * (1 - contrast) * mean


class DACSAugment(nn.Module):
    """Strong augmentation of mixed images as released with DACS, DAFormer and FST: colour jitter, then blur.

    Tranheden et al., "DACS" (WACV 2021). Whether the batch is jittered, and whether it is blurred, is one
    coin each per call. Factors, the order of the four colour operations and the blur's sigma are drawn per
    image. The operations are those of :func:`zoo.nn.color_jitter` and, with kernels of
    :func:`zoo.nn.blur_kernel_size`, :func:`zoo.nn.gaussian_blur`.

    Args:
        jitter_skip: the batch is jittered when a uniform draw exceeds this (the releases call it
            ``color_jitter_probability``, but the probability is ``1 - jitter_skip``).
        blur_skip: the batch is blurred when a uniform draw exceeds this.
        strength: brightness, contrast and saturation within ``1 ± strength``, hue ``± strength`` turns.
        sigma: (least, largest) standard deviation of the blur in pixels.
    """

    def __init__(
        self,
        jitter_skip: float = 0.2,
        blur_skip: float = 0.5,
        strength: float = 0.2,
        sigma: tuple[float, float] = (0.15, 1.15),
    ) -> None:
        super().__init__()
        self.jitter_skip, self.blur_skip = jitter_skip, blur_skip
        self.strength, self.sigma = strength, sigma
        # Beyond six standard deviations a Gaussian is below float32's resolution: leave those taps out.
        self.longest_kernel = 2 * math.ceil(6 * sigma[1]) + 1

    def forward(self, image: Tensor) -> Tensor:
        """Augment float ``[B, 3, H, W]`` in [0, 1]."""
        jitter, blur = self.coins()
        if jitter > self.jitter_skip:
            image = color_jitter(image, *self.colours(len(image)))
        if blur > self.blur_skip:
            sigma = torch.empty(len(image), device=image.device).uniform_(*self.sigma)
            height, width = (min(blur_kernel_size(side), self.longest_kernel) for side in image.shape[-2:])
            image = gaussian_blur(image, sigma, (height, width))
        return image

    def coins(self) -> tuple[float, float]:
        """Draw what decides on jitter and blur, both within [0, 1)."""
        jitter, blur = torch.rand(2).tolist()
        return jitter, blur

    def colours(
        self, count: int
    ) -> tuple[list[float], list[float], list[float], list[float], list[list[int]]]:
        """Draw brightness, contrast, saturation and hue of ``count`` images, and the orders of the four."""
        b, c, s = torch.empty(3, count).uniform_(1 - self.strength, 1 + self.strength).tolist()
        hue = torch.empty(count).uniform_(-self.strength, self.strength).tolist()
        return b, c, s, hue, torch.rand(count, 4).argsort(1).tolist()
