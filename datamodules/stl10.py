"""STL-10 (Coates et al., AISTATS 2011): few labelled and many unlabelled images of 96×96 pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from datamodules.image_archives import map_bytes
from datamodules.image_sets import NO_LABEL, ImageSource, ImageSubset
from datamodules.layout import Layout, LayoutError, LayoutReport, Split
from datamodules.memory_images import MemoryImageDataModule


class STL10(MemoryImageDataModule):
    """Ten classes; 5,000 labelled, 100,000 unlabelled and 8,000 test images.

    ``root`` is the folder that holds ``stl10_binary``. Files are mapped, so the unlabelled part costs no memory
    at its stored size. Its images have label -1.

    Args:
        unlabelled: pre-training shows the unlabelled images as well. Supervised training and the bank never do.
        fold: 0 to 9 takes the 1,000 labels of this official fold only; None all 5,000. Images for validation
            are then held out from the other folds.
        **common: see :class:`~datamodules.memory_images.MemoryImageDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "stl10"
    num_classes = 10
    classes: ClassVar[tuple[str, ...]] = (
        "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck",
    )  # fmt: skip
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="STL-10",
            images="stl10_binary",
            suffix=".bin",
            labels=(),
            splits={
                "train": Split("train_[Xy]", (2,)),
                "unlabelled": Split("unlabeled_X", (1,)),
                "test": Split("test_[Xy]", (2,)),
            },
            origin="cs.stanford.edu/~acoates/stl10: stl10_binary.tar.gz, or download: true",
            unit="files",
        )
    }
    holds_out_val = True
    default_num_val = 500
    torchvision_class = "STL10"
    download_parts: ClassVar[Sequence[Mapping[str, Any]]] = ({"split": "train+unlabeled"},)

    def __init__(self, unlabelled: bool = True, fold: int | None = None, **common: Any) -> None:
        super().__init__(**common)
        if fold is not None and not 0 <= fold <= 9:
            raise ValueError(f"fold must lie in 0..9, got {fold}.")
        self.unlabelled, self.fold = unlabelled, fold
        self._fold: np.ndarray | None = None

    def needs(self, stage: str | None = None) -> dict[str, dict[str, bool]]:
        """Pre-training shows the unlabelled images as well."""
        splits = super().needs(stage)["root"]
        shown = self._shows_unlabelled and "train" in splits
        return {"root": {**splits, "unlabelled": False} if shown else splits}

    @property
    def _shows_unlabelled(self) -> bool:
        return self.unlabelled and self.views is not None

    def read(self, split: str, report: LayoutReport | None) -> ImageSource:
        """Map a split; ``train`` is followed by the unlabelled images if training shows them."""
        assert report is not None
        assert report.root is not None
        if split == "train" and self.fold is not None:
            self._fold = _read_fold(report.root / report.layout.images / "fold_indices.txt", self.fold)
        images = super().read(split, report)
        if split == "train" and self._shows_unlabelled:
            return ChainedImages([images, self.source("unlabelled")])
        return images

    def arrays(self, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """Mapped pixels and labels, which the files count from 1."""
        below, name = folder / self.tree().images, "unlabeled" if split == "unlabelled" else split
        # Files store columns first.
        pixels = map_bytes(below / f"{name}_X.bin", (3, 96, 96)).transpose(0, 1, 3, 2)
        if split == "unlabelled":
            return pixels, np.full(len(pixels), NO_LABEL, np.int64)
        labels = map_bytes(below / f"{name}_y.bin", ()).astype(np.int64) - 1
        if (labels < 0).any():
            raise LayoutError(f"{below / f'{name}_y.bin'} holds 0; classes are counted from 1.")
        return pixels, labels

    def labelled_candidates(self, train: ImageSubset) -> np.ndarray:
        """Labelled images, of the fold only if one was chosen."""
        labelled = super().labelled_candidates(train)
        return labelled if self._fold is None else labelled[np.isin(train.positions[labelled], self._fold)]

    def held_out_candidates(self, train: ImageSubset) -> np.ndarray:
        """Labelled images outside the fold, which is kept whole."""
        labelled = super().labelled_candidates(train)
        return labelled if self._fold is None else labelled[~np.isin(train.positions[labelled], self._fold)]


class ChainedImages:
    """Sources of equal image size one after another.

    Args:
        sources: in this order.
    """

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self._sources = list(sources)
        self.labels = np.concatenate([source.labels for source in sources])
        self._starts = np.cumsum([0, *(len(source.labels) for source in sources)])

    def load(self, positions: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> Tensor:
        """Images ``[B,3,H,W]`` uint8 in the order of ``positions``."""
        owner = np.searchsorted(self._starts, positions, side="right") - 1
        order = np.argsort(owner, kind="stable")
        parts = [
            source.load(positions[owner == number] - self._starts[number])
            for number, source in enumerate(self._sources)
            if (owner == number).any()
        ]
        return torch.cat(parts)[torch.from_numpy(np.argsort(order))]

    def names(self, positions: np.ndarray) -> None:
        """Sets in memory have none."""


def _read_fold(path: Path, fold: int) -> np.ndarray:
    """Positions of a fold: line ``fold`` of ``fold_indices.txt``, counted from 0."""
    if not path.is_file():
        raise LayoutError(f"fold={fold} needs {path}, which is part of stl10_binary.tar.gz.")
    lines = path.read_text().splitlines()
    if len(lines) <= fold:
        raise LayoutError(f"{path} holds {len(lines)} folds, fold={fold} is not among them.")
    return np.array([int(position) for position in lines[fold].split()])
