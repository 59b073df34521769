"""Large images cut into overlapping patches once, and read memory-mapped in training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.cache import cache_root, write_atomically
from datamodules.readers import BrokenImageError


@dataclass(frozen=True)
class Cutting:
    """How images are cut.

    Args:
        side: of a patch in pixels.
        stride: from patch to patch.
        border: pixels of the image's edge that are in none.

    Raises:
        ValueError: a number out of range.
    """

    side: int = 256
    stride: int = 200
    border: int = 0

    def __post_init__(self) -> None:
        if min(self.side, self.stride) < 1 or self.border < 0:
            raise ValueError(
                f"patch_size={self.side} and patch_stride={self.stride} must be at least 1, border={self.border} at "
                "least 0."
            )

    def patches(self, image: np.ndarray) -> np.ndarray:
        """``[N, side, side, 3]`` of an image ``[H, W, 3]``.

        Raises:
            ValueError: the image is smaller than a patch and its borders.
        """
        rows, columns = (
            range(self.border, length - self.border - self.side + 1, self.stride)
            for length in image.shape[:2]
        )
        if not rows or not columns:
            raise ValueError(
                f"{image.shape[0]} x {image.shape[1]} pixels hold no patch of {self.side} pixels {self.border} from "
                "the edge: lower data.patch_size"
            )
        return np.stack([image[y : y + self.side, x : x + self.side] for y in rows for x in columns])


class PatchCache:
    """One file of patches for every image, below ``folder``; another image or another cutting is another file.

    Args:
        read: an image file → ``[H, W, 3]``.
        cutting: see :class:`Cutting`.
        folder: where to; None takes ``patches`` in the cache of selfzoo.
    """

    def __init__(
        self, read: Callable[[Path], np.ndarray], cutting: Cutting, folder: str | None = None
    ) -> None:
        self.read, self.cutting = read, cutting
        self.folder = Path(folder).expanduser() if folder else cache_root() / "patches"

    def file(self, image: Path) -> Path:
        """Where the patches of an image are or will be."""
        about = image.stat()
        key = f"{image.resolve()} {about.st_size} {about.st_mtime_ns} {self.cutting}"
        return self.folder / f"{image.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"

    def ensure(self, images: Sequence[Path], workers: int, skip_broken: bool) -> None:
        """Cut what is not there yet. With ``skip_broken`` a file without a patch stands for a damaged image.

        Raises:
            BrokenImageError: an image is damaged or too small; it is named.
        """
        missing = [
            image
            for image in images
            if not self.file(image).is_file() or not (skip_broken or len(self[image]))
        ]
        if not missing:
            return
        rank_zero_info(f"Cutting {len(missing)} images into patches below {self.folder} (once).")

        def cut(image: Path) -> None:
            try:
                patches = self.cutting.patches(self.read(image))
            except (BrokenImageError, ValueError) as error:
                if not skip_broken:
                    told = error if isinstance(error, BrokenImageError) else f"{image}: {error}"
                    raise BrokenImageError(f"{told}") from error
                patches = np.empty((0, self.cutting.side, self.cutting.side, 3), np.uint8)
            write_atomically(self.file(image), lambda file: np.save(file, patches))

        with ThreadPoolExecutor(max(1, workers)) as pool:
            list(pool.map(cut, missing))

    def __getitem__(self, image: Path) -> np.ndarray:
        """The patches of an image, memory-mapped.

        Raises:
            RuntimeError: it is not cut yet.
        """
        file = self.file(image)
        if not file.is_file():
            raise RuntimeError(f"{image} is not cut into patches yet: call prepare_data() first.")
        return np.load(file, mmap_mode="r")


class Patches:
    """The patches of several images, one after the other.

    Args:
        groups: of :class:`PatchCache`.
    """

    def __init__(self, groups: Sequence[np.ndarray]) -> None:
        self._groups, self._ends = list(groups), np.cumsum([len(group) for group in groups])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def group_of(self, position: int) -> int:
        """Which image a patch is of."""
        return int(np.searchsorted(self._ends, position, side="right"))

    def __getitem__(self, position: int) -> np.ndarray:
        group = self.group_of(position)
        return self._groups[group][
            position - self._ends[group]
        ]  # a negative index counts from the group's end
