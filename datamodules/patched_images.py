"""What SIDD and DND share: large noisy images that are cut into patches for training."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from datamodules.denoising import DenoisingDataModule
from datamodules.layout import LayoutError
from datamodules.patch_cache import Cutting, PatchCache, Patches


class PatchedImages(DenoisingDataModule):
    """Base of the benchmarks of large photographs; they are cut once (:class:`~datamodules.patch_cache.PatchCache`).

    Args:
        root: folder of the official tree.
        patch_size: side of the patches that crops are drawn from.
        patch_stride: from patch to patch.
        border: pixels at an image's edge that are in no patch; None takes the benchmark's.
        cache_folder: where patches are kept; None takes the cache of selfzoo.
        num_workers: loader processes, also of cutting.
        **common: see :class:`~datamodules.denoising.DenoisingDataModule`.

    Raises:
        ValueError: an argument is out of range, or crops are larger than patches.
    """

    default_border: ClassVar[int] = 0

    def __init__(
        self,
        root: str | None = None,
        patch_size: int = 256,
        patch_stride: int = 200,
        border: int | None = None,
        cache_folder: str | None = None,
        num_workers: int = 4,
        **common: Any,
    ) -> None:
        super().__init__(num_workers=num_workers, **common)
        if self.crop > patch_size:
            raise ValueError(f"crop={self.crop} does not fit patches: raise patch_size={patch_size}.")
        self.root = root
        cutting = Cutting(patch_size, patch_stride, self.default_border if border is None else border)
        self.cache = PatchCache(self.read, cutting, cache_folder)

    @staticmethod
    @abstractmethod
    def read(path: Path) -> np.ndarray:
        """A noisy image ``[H, W, 3]``: uint8, or float32 in [0, 1]."""

    def training_images(self) -> list[Path]:
        """The noisy images of training."""
        return [pair.image for pair in self.checked("fit")["root"].splits["train"].pairs]

    def prepare_data(self) -> None:
        """Cut the training images, unless that has been done."""
        state = None if self.trainer is None else self.trainer.state.fn
        if state is None or state.value == "fit":
            self.cache.ensure(self.training_images(), self.num_workers, self.skip_broken)

    def setup(self, stage: str | None = None) -> None:
        """Open the patches of training and what a stage evaluates.

        Raises:
            LayoutError: a root is not as its layout declares, or no image of it can be used.
            RuntimeError: the images were not cut yet.
        """
        self.checked(stage)
        if stage in (None, "fit"):
            images = self.training_images()
            cut = [self.cache[image] for image in images]
            usable = [n for n, patches in enumerate(cut) if len(patches)]
            if broken := [str(image) for n, image in enumerate(images) if n not in set(usable)]:
                self.skipped["root/train"] = broken
                told = f"skip_broken left out {len(broken)} of {len(images)} images, e.g. {broken[0]}"
                if not usable or not self.skip_broken:
                    raise LayoutError(f"{told}; call prepare_data() again after they are repaired.")
                rank_zero_warn(told)
            patches = Patches([cut[n] for n in usable])
            files = [images[n] for n in usable]
            self.datasets["train"] = self.drawn(patches, lambda index: str(files[patches.group_of(index)]))
        self.datasets.update(self.evaluated(stage))

    @abstractmethod
    def evaluated(self, stage: str | None) -> dict[str, Any]:
        """The evaluation datasets of a stage."""
