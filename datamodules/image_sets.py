"""Sets of labelled images, in memory or in files, read a batch at a time.

A source loads images by position. :class:`ImageSubset` shows some of its positions in order, for evaluation;
:class:`DrawnImages` gives numbered draws of a subset, for training. Both answer whole batches
(``__getitems__``), so that a set in memory costs one indexing operation a batch and no Python an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.image_sizes import centre_window, fitted, padded, resized, shrunk
from datamodules.readers import ImageJob, PixelCache, RandomCrop, read_image
from datamodules.sampling import ShuffledPicker

NO_LABEL: Final = -1
_RESIZED_AT_ONCE: Final = 1024


class ImageSource(Protocol):
    """Images by position. ``labels`` is int64 ``[N]``, :data:`NO_LABEL` where an image has none."""

    labels: np.ndarray

    def load(self, positions: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> Tensor:
        """Images ``[B,3,H,W]`` uint8; with ``rngs`` (one an image) random windows where they are cut."""
        ...

    def names(self, positions: np.ndarray) -> list[str] | None:
        """File stems, or None where images are no files."""
        ...


class MemoryImages:
    """Images of one size held as one tensor.

    Args:
        pixels: ``[N,C,H,W]`` uint8 with one channel, which is repeated without being copied, or three. Any
            strides, also those of a memory map.
        labels: ``[N]`` int64.
        size: height and width to which all are resized at once (bicubic); None keeps the stored size.
    """

    def __init__(self, pixels: Tensor, labels: np.ndarray, size: int | None = None) -> None:
        if size is not None and tuple(pixels.shape[-2:]) != (size, size):
            pixels = torch.cat([resized(part, (size, size)) for part in pixels.split(_RESIZED_AT_ONCE)])
        self._pixels, self.labels = pixels.expand(-1, 3, -1, -1), labels

    def load(self, positions: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> Tensor:
        """Images ``[B,3,H,W]`` uint8; they are whole, so nothing is random."""
        return self._pixels[torch.from_numpy(positions)].contiguous()

    def names(self, positions: np.ndarray) -> None:
        """There are no files."""


class FileImages:
    """Image files, decoded when they are asked for.

    Args:
        root: folder that ``paths`` are relative to.
        paths: ``[N]`` relative paths. Kept as one array of bytes: a million Python objects would be copied
            into every loader process as soon as they are touched.
        labels: ``[N]`` int64.
        crop: height and width of the square that is cut out, centred or at random.
        resize: length of the short side before that (bicubic, antialiased); None keeps the stored size.
        cache: where decoded and resized images are read from, once all :meth:`jobs` are there.
        longest_side: training draws are whole images, their longer side shrunk to this; None cuts them at random.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        labels: np.ndarray,
        crop: int,
        resize: int | None,
        cache: PixelCache | None = None,
        longest_side: int | None = None,
    ) -> None:
        self.root, self.labels, self._cache, self.longest_side = root, labels, cache, longest_side
        self._paths = np.array([path.encode() for path in paths])
        self._resize, self._crop = resize, RandomCrop((crop, crop))

    def load(self, positions: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> Tensor:
        """Decode, resize and cut images ``[B,3,crop,crop]`` uint8.

        Raises:
            BrokenImageError: a file cannot be decoded; it is named.
            ValueError: an image is smaller than the crop; it is named.
        """
        draws: Sequence[np.random.Generator | None] = rngs or [None] * len(positions)
        return torch.stack([self._window(p, rng) for p, rng in zip(positions, draws, strict=True)])

    def load_whole(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Decode images and shrink the larger ones: :func:`~datamodules.image_sizes.padded`, and their sizes.

        Raises:
            BrokenImageError: a file cannot be decoded; it is named.
        """
        return padded([self._read(self._job(position, whole=True)) for position in positions])

    def names(self, positions: np.ndarray) -> list[str]:
        """File stems."""
        return [Path(self._paths[position].decode()).stem for position in positions]

    def jobs(self) -> list[ImageJob]:
        """All files, with what is done to them before a window is cut, and before whole images are handed over."""
        forms = (False,) if self.longest_side is None else (False, True)
        return [self._job(position, whole) for position in range(len(self._paths)) for whole in forms]

    def _job(self, position: int, whole: bool = False) -> ImageJob:
        path = self.root / self._paths[position].decode()
        return (
            ImageJob(path, longest_side=self.longest_side)
            if whole
            else ImageJob(path, short_side=self._resize)
        )

    def _read(self, job: ImageJob) -> Tensor:
        if self._cache is None:
            return fitted(shrunk(read_image(job.file), job.short_side), job.longest_side)
        # Found anew each time: a million records would fill the memory of every process.
        return self._cache.records([job])[0].read()

    def _window(self, position: int, rng: np.random.Generator | None) -> Tensor:
        job = self._job(position)
        image = self._read(job)
        try:
            if rng is None:
                rows, columns = centre_window(image.shape[1], image.shape[2], self._crop.size[0])
            else:
                rows, columns = self._crop.window((image.shape[1], image.shape[2]), None, rng)
        except ValueError as error:
            raise ValueError(f"{job.file}: {error}") from error
        return image[:, rows, columns]


class ImageSubset(Dataset[dict[str, Any]]):
    """Some images of a source in order: ``image``, ``label``, ``index`` and, of files, ``name``.

    Args:
        source: where images come from.
        positions: ``[n]`` which of them; None takes all.
    """

    def __init__(self, source: ImageSource, positions: np.ndarray | None = None) -> None:
        self.source = source
        self.positions = np.arange(len(source.labels)) if positions is None else positions

    @property
    def labels(self) -> np.ndarray:
        """Labels of the subset, ``[n]`` int64."""
        return self.source.labels[self.positions]

    def part(self, positions: np.ndarray) -> ImageSubset:
        """A subset of this subset, by positions in it."""
        return ImageSubset(self.source, self.positions[positions])

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        index = np.asarray(indices)
        batch: dict[str, Any] = self.batch(index)
        names = self.source.names(self.positions[index])
        return batch if names is None else {**batch, "name": names}

    def batch(
        self, index: np.ndarray, rngs: Sequence[np.random.Generator] | None = None
    ) -> dict[str, Tensor]:
        """``image`` uint8 ``[B,3,H,W]``, ``label`` and ``index`` int64 ``[B]``; draws (``rngs``) of whole images
        are padded and have their ``size``, int64 ``[B,2]``."""
        positions, source = self.positions[index], self.source
        if rngs is not None and isinstance(source, FileImages) and source.longest_side is not None:
            image, size = source.load_whole(positions)
            pixels = {"image": image, "size": size}
        else:
            pixels = {"image": source.load(positions, rngs)}
        return {
            **pixels,
            "label": torch.from_numpy(source.labels[positions]),
            "index": torch.from_numpy(index),
        }


class DrawnImages(Dataset[dict[str, Tensor]]):
    """Numbered draws of a subset: every image once a pass, in a new order each pass, passes without end.

    Draw ``k`` is a pure function of ``(seed, k)``, as in :mod:`datamodules.sampling`. Batches also hold
    ``draw``, int64 ``[B]``, by which training batches are told from others.

    Args:
        subset: the images.
        seed: of order and windows.
    """

    def __init__(self, subset: ImageSubset, seed: int) -> None:
        self.subset, self._seed = subset, seed
        self._picker = ShuffledPicker(len(subset), (seed, 0, 1))

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, draw: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.__getitems__([draw]).items()}

    def __getitems__(self, draws: Sequence[int]) -> dict[str, Tensor]:
        index = np.array([self._picker.position(draw) for draw in draws])
        # Sets in memory draw no windows, and a generator for every image would cost more than the batch.
        cuts = isinstance(self.subset.source, FileImages)
        rngs = [np.random.default_rng([self._seed, 0, 0, draw]) for draw in draws] if cuts else None
        return {**self.subset.batch(index, rngs), "draw": torch.tensor(draws)}


def as_batch(batch: dict[str, Any]) -> dict[str, Any]:
    """What subsets and draws return is a batch already."""
    return batch


def balanced_choice(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Positions of ``count`` images with the class shares of ``labels``, up to one image a class.

    Images are shuffled, put in order of their class, and taken at even distances.

    Args:
        labels: ``[N]`` int64.
        count: how many, at most N.
        seed: of the shuffle.

    Returns:
        ``[count]`` int64, ascending.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return np.sort(order[((np.arange(count) + 0.5) * len(labels) / max(count, 1)).astype(np.int64)])
