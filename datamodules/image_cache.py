"""Decoded and resized images and labels on disk, read memory-mapped: where decoding is what training waits for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.array_cache import FileCache, mapped
from datamodules.image_sizes import fitted, shrunk
from datamodules.readers import (
    BrokenImageError,
    ImageJob,
    read_image,
    read_label,
    resized_image,
    resized_label,
)


@dataclass(frozen=True)
class ImageRecord:
    """An image or a label in the cache.

    Args:
        folder: where its array lies.
        source: its file.
        size: height and width there.
        checksums: array → CRC-32 of its file.
    """

    folder: Path
    source: str
    size: tuple[int, int]
    checksums: dict[str, int]

    def read(self) -> Tensor:
        """Uint8 ``[3,H,W]`` or ``[H,W]``, memory-mapped: only what is indexed is read. Do not write to it.

        Raises:
            CacheError: the file is gone or damaged.
        """
        return torch.from_numpy(mapped(self.folder / "pixels.npy", self.source))


class ImageCache(FileCache[ImageJob, ImageRecord]):
    """Images and labels, see :class:`~datamodules.array_cache.FileCache`.

    A file that cannot be decoded raises :class:`~datamodules.readers.BrokenImageError`.

    Args:
        folder: where to keep them; None takes ``images`` in the cache of selfzoo.
    """

    version = 1
    default_folder = "images"
    verb, unit = "Decoding", "images and labels"
    broken = BrokenImageError

    def files(self, job: ImageJob) -> list[Path]:
        """The one file."""
        return [job.file]

    def settings(self, job: ImageJob) -> list[Any]:
        """All but the file; without ``longest_side`` as before there was one, so that older caches stay."""
        return list(job[1:] if job.longest_side is not None else job[1:-1])

    def title(self, job: ImageJob) -> str:
        """The file's stem."""
        return job.file.stem

    def record(self, folder: Path, content: dict[str, Any]) -> ImageRecord:
        """See :class:`ImageRecord`."""
        height, width = content.pop("size")
        return ImageRecord(folder=folder, size=(height, width), **content)

    def make(self, job: ImageJob) -> None:
        """Decode and resize one file.

        Raises:
            BrokenImageError: it cannot be decoded.
            ValueError: a label holds values outside its encoding.
        """
        if job.encoding is None:
            whole = read_image(job.file)
            pixels = shrunk(resized_image(whole, job.resize), job.short_side)
            pixels = fitted(pixels, job.longest_side)
        else:
            whole = read_label(job.file, job.encoding)
            pixels = resized_label(whole, job.resize)
        size = [int(side) for side in whole.shape[-2:]]
        self.keep(
            job, {"pixels": np.ascontiguousarray(pixels.numpy())}, {"source": str(job.file), "size": size}
        )
