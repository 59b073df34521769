"""Small image sets that are held in memory."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.image_sets import ImageSource, MemoryImages
from datamodules.images import ImageDataModule
from datamodules.layout import LayoutError, LayoutReport


class MemoryImageDataModule(ImageDataModule):
    """A small set, held in memory as one tensor of bytes.

    Args:
        image_size: height and width to which images are resized once; None keeps the stored size.
        crop_scale: bounds of the share of its area that supervised training sees of an image; None shows it
            whole.
        **common: see :class:`ImageDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        image_size: int | None = None,
        crop_scale: tuple[float, float] | None = (0.5, 1.0),
        **common: Any,
    ) -> None:
        super().__init__(crop_scale=crop_scale, **common)
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {image_size}.")
        self.image_size = image_size

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The resize of every image."""
        return {} if self.image_size is None else {"size": [self.image_size, self.image_size]}

    @abstractmethod
    def arrays(self, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """Pixels ``[N,C,H,W]`` uint8 and labels ``[N]`` int64 of an official split."""

    def read(self, split: str, report: LayoutReport | None) -> ImageSource:
        """Read a whole split."""
        folder = Path() if report is None or report.root is None else report.root
        pixels, labels = self.arrays(split, folder)
        if len(pixels) != len(labels):
            raise LayoutError(
                f"{type(self).__name__}: {split} has {len(pixels)} images but {len(labels)} labels "
                f"(root={self.root!r}): the files do not belong together."
            )
        return MemoryImages(torch.from_numpy(pixels), labels, self.image_size)
