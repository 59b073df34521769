"""Denoising benchmarks: crops of noisy images for training, whole images with their clean ones for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import BenchmarkDataModule
from datamodules.labels import RGB
from datamodules.sampling import ShuffledPicker


class Pictures(Protocol):
    """Arrays ``[H, W, 3]`` by position: uint8, or float32 in [0, 1]."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> np.ndarray: ...


class DrawnCrops(Dataset[dict[str, Any]]):
    """Numbered draws: a random square of a picture, in one of its eight orientations.

    Every picture once a pass, in a new order each pass. Draw ``k`` is a pure function of ``(seed, k)``. Turning a crop
    moves no pixel but when it is copied out, which it has to be.

    Args:
        pictures: noisy ones.
        crop: side of the square.
        seed: of order, squares and orientations.
        where: names a picture in messages.
    """

    def __init__(self, pictures: Pictures, crop: int, seed: int, where: Callable[[int], str]) -> None:
        self.pictures, self.crop, self._seed, self._where = pictures, crop, seed, where
        self._picker = ShuffledPicker(len(pictures), (seed, 0, 1))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        """``image`` ``[3, crop, crop]``, ``index`` and ``draw``.

        Raises:
            ValueError: the picture is smaller than the crop; it is named.
        """
        index, rng = self._picker.position(draw), np.random.default_rng([self._seed, 0, 0, draw])
        picture = self.pictures[index]
        height, width = picture.shape[:2]
        if min(height, width) < self.crop:
            raise ValueError(
                f"{self._where(index)} has {height} x {width} pixels, fewer than crop={self.crop}: lower data.crop or "
                "leave that image out"
            )
        top, left = rng.integers(height - self.crop + 1), rng.integers(width - self.crop + 1)
        turns, mirrored = int(rng.integers(4)), rng.integers(2)
        square = np.rot90(picture[top : top + self.crop, left : left + self.crop], turns)
        return {"image": as_image(square[:, ::-1] if mirrored else square), "index": index, "draw": draw}


class WholePictures(Dataset[dict[str, Any]]):
    """Pictures in order: ``image``, ``clean`` where there are clean ones, ``index`` and ``name``.

    Args:
        noisy: pictures.
        names: one for each.
        clean: what they show, without noise.
    """

    def __init__(self, noisy: Pictures, names: Sequence[str], clean: Pictures | None = None) -> None:
        self.noisy, self.names, self.clean = noisy, names, clean

    def __len__(self) -> int:
        return len(self.noisy)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clean = {} if self.clean is None else {"clean": as_image(self.clean[index])}
        return {"image": as_image(self.noisy[index]), **clean, "index": index, "name": self.names[index]}


class DenoisingDataModule(BenchmarkDataModule):
    """Noisy images for training without ground truth.

    Batches are flat: ``image`` float ``[B, 3, H, W]`` in [0, 1], noisy, and ``index``; in evaluation also ``name`` and,
    where clean images are published, ``clean``. Training never reads those. There are no classes.

    Args:
        batch_size: training crops a step, on every device.
        eval_batch_size: images a batch in evaluation; 1 where their sizes differ.
        num_workers: loader processes; 0 loads in the training process.
        seed: of everything the loaders draw; None takes that of ``seed_everything``.
        crop: side of training crops in pixels.
        skip_broken: leave out damaged files and count them, instead of stopping.
        allow_partial: accept another number of files than was published.

    Raises:
        ValueError: an argument is out of range.
    """

    classes: ClassVar[tuple[str, ...]] = ()
    palette: ClassVar[tuple[RGB, ...]] = ()
    num_classes = 0
    eval_classes: ClassVar[tuple[int, ...]] = ()

    def __init__(
        self,
        batch_size: int = 4,
        eval_batch_size: int = 8,
        num_workers: int = 4,
        seed: int | None = None,
        crop: int = 120,
        skip_broken: bool = False,
        allow_partial: bool = False,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, skip_broken, allow_partial)
        if crop < 1:
            raise ValueError(f"crop must be at least 1, got {crop}.")
        self.crop = crop

    def drawn(self, pictures: Pictures, where: Callable[[int], str]) -> DrawnCrops:
        """The draws of training."""
        return DrawnCrops(pictures, self.crop, self.draw_seed, where)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """uint8 → float images in [0, 1]; floats are so already."""
        images: dict[str, Any] = {
            key: batch[key].float() / 255
            for key in ("image", "clean")
            if key in batch and batch[key].dtype == torch.uint8
        }
        return {**batch, **images}


def as_image(picture: np.ndarray) -> Tensor:
    """``[H, W, 3]`` → ``[3, H, W]``, copied."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)).copy())
