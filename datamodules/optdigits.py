"""Optdigits (Alpaydin and Kaynak, 1998): the handwritten digits that scikit-learn ships, nothing to download."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from datamodules.image_sets import balanced_choice
from datamodules.layout import Layout
from datamodules.memory_images import MemoryImageDataModule

NUM_TEST: Final = 400
_SPLIT_SEED: Final = 0


class Optdigits(MemoryImageDataModule):
    """1,797 grey digits of 8×8 pixels: 1,197 for training, 200 for validation, 400 for test, all fixed.

    scikit-learn packs the official test part of the set (43 writers not in its training part); the three
    splits are drawn from it with equal shares of the classes. Values 0..16 become 0..255.

    Args:
        num_val: training images held out for validation.
        batch_size: training images a step, on every device.
        **common: see :class:`~datamodules.memory_images.MemoryImageDataModule`. There is no ``root``.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "optdigits"
    num_classes = 10
    classes: ClassVar[tuple[str, ...]] = tuple("0123456789")
    layout: ClassVar[Mapping[str, Layout]] = {}
    holds_out_val = True
    default_num_val = 200
    mirrors = False

    def __init__(self, batch_size: int = 128, **common: Any) -> None:
        super().__init__(batch_size=batch_size, **common)

    def arrays(self, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and labels of the training or test part."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError("Optdigits needs scikit-learn: pip install 'selfzoo[digits]'") from error
        digits = load_digits()
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
        labels = digits.target.astype(np.int64)
        test = np.isin(np.arange(len(labels)), balanced_choice(labels, NUM_TEST, _SPLIT_SEED))
        chosen = test if split == "test" else ~test
        return pixels[chosen], labels[chosen]
