"""Windows of randomly resized images, padded where an image is smaller than the window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from datamodules.labels import IGNORE_INDEX
from datamodules.readers import RandomCrop

#: What normalisation by ImageNet's mean turns into zero, to the nearest byte.
_ZERO: Final = (124, 116, 104)


@dataclass(frozen=True)
class ScaledCrop(RandomCrop):
    """Resize by a random factor, pad all around to the window's size, cut a window anywhere.

    Half of the factors come from [low, 1] and half from [1, high], so that enlarging is as likely as shrinking
    (U2PL, CVPR 2022, and semi-supervised FST). Images are resized bilinearly and padded with ImageNet's mean
    colour, labels nearest and padded with ``pad_label``.

    Args:
        size: height and width of the window in pixels.
        scale: the smallest and the largest factor.
        pad_label: trainId of the padding; the released code takes 0, which teaches that padding is class 0.

    Raises:
        ValueError: ``scale`` does not enclose 1, or ``pad_label`` is no byte.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    pad_label: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.scale
        if not 0 < low <= 1 <= high:
            raise ValueError(f"scale must be two factors around 1, such as [0.5, 2.0], got {self.scale}.")
        if not 0 <= self.pad_label <= 255:
            raise ValueError(f"pad_label must be a trainId or 255, got {self.pad_label}.")

    def cut(
        self, image: Tensor, label: Tensor | None, rng: np.random.Generator, rare_class: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return a window of image ``[3,H,W]`` and label ``[H,W]``, both uint8; no class is preferred."""
        low, high = self.scale
        factor = rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
        shape = [max(1, int(side * factor)) for side in image.shape[1:]]
        image = F.interpolate(image[None], size=shape, mode="bilinear", align_corners=False)[0]
        if label is not None:
            label = F.interpolate(label[None, None], size=shape, mode="nearest")[0, 0]
        image, label = self._pad(image, label)
        rows, columns = self._draw(
            [side - crop for side, crop in zip(image.shape[1:], self.size, strict=True)], rng
        )
        return image[:, rows, columns], None if label is None else label[rows, columns]

    def _pad(self, image: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        missing = [max(0, crop - side) for side, crop in zip(image.shape[1:], self.size, strict=True)]
        if not any(missing):
            return image, label
        (top, bottom), (left, right) = ((both // 2, both - both // 2) for both in missing)
        border = (left, right, top, bottom)
        if label is not None:
            label = F.pad(label, border, value=self.pad_label)
        height, width = (side + both for side, both in zip(image.shape[1:], missing, strict=True))
        padded = image.new_tensor(_ZERO)[:, None, None].repeat(1, height, width)
        padded[:, top : height - bottom, left : width - right] = image
        return padded, label
