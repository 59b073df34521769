"""Generated eyes: photographs and OCT scans with four classes each, the small benchmarks of both dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from datamodules.cache import cache_root, ensure_folder
from datamodules.eye_render import FUNDUS_CLASSES, GENERATOR_VERSION, OCT_CLASSES, OCT_SIZE, fundus, oct_scan
from datamodules.layout import Layout, Pair
from datamodules.memory_images import MemoryImageDataModule
from datamodules.rendered_volumes import SECTIONS, RenderedVolumes, Rendering, rendered_layout
from datamodules.volume_classes import VolumeClassification
from datamodules.volume_processing import Processing
from datamodules.volume_sets import Size3

#: Millimetres between voxels of the generated scans: along depth, slices and columns.
_AFFINE: Final = np.diag([0.06, 0.375, 0.19, 1.0])


class EyePhotographs(MemoryImageDataModule):
    """Photographs of 32×32 pixels: healthy, hypertension, glaucoma or myopia.

    Rendered on first use, 4 ms an image. Settings are to be chosen on ``val``.

    Args:
        num_train: training images.
        num_val: images of validation.
        num_test: images of test.
        root: folder for the rendered images; None takes ``$SELFZOO_CACHE`` or ``~/.cache/selfzoo``.
        batch_size: training images a step, on every device.
        image_size: height and width to which images are resized once.
        crop_scale: see :class:`~datamodules.images.ImageDataModule`; smaller crops may miss what tells the class.
        **common: see :class:`~datamodules.memory_images.MemoryImageDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "eye_photographs"
    classes: ClassVar[tuple[str, ...]] = FUNDUS_CLASSES
    num_classes = len(FUNDUS_CLASSES)
    layout: ClassVar[Mapping[str, Layout]] = {}

    def __init__(
        self,
        num_train: int = 1200,
        num_val: int = 200,
        num_test: int = 400,
        root: str | None = None,
        batch_size: int = 64,
        image_size: int | None = 32,
        crop_scale: tuple[float, float] | None = (0.7, 1.0),
        **common: Any,
    ) -> None:
        super().__init__(
            root=root, batch_size=batch_size, image_size=image_size, crop_scale=crop_scale, **common
        )
        self._counts = {"train": num_train, "val": num_val, "test": num_test}
        for split, count in self._counts.items():
            if not 1 <= count <= 100_000:  # the distance between two splits' seeds
                raise ValueError(f"num_{split} must lie in 1..100000, got {count}.")
        base = Path(root).expanduser() if root else cache_root()
        self._folders = {
            split: base / f"eye_photographs-v{GENERATOR_VERSION}" / f"{split}{count}"
            for split, count in self._counts.items()
        }

    def prepare_data(self) -> None:
        """Render the images, unless they are there already."""
        for split, count in self._counts.items():
            seeds = range(SECTIONS[split][1], SECTIONS[split][1] + count)

            def write(folder: Path, seeds: range = seeds) -> None:
                np.save(folder / "pixels.npy", np.stack([fundus(seed) for seed in seeds]))
                np.save(folder / "labels.npy", np.array(seeds, np.int64) % len(FUNDUS_CLASSES))

            ensure_folder(self._folders[split], f"{count} photographs of eyes", write)

    def arrays(self, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and labels of a split."""
        if not (self._folders[split] / "labels.npy").is_file():
            raise RuntimeError(f"{self._folders[split]} is not rendered yet: call prepare_data() first.")
        pixels, labels = (np.load(self._folders[split] / f"{name}.npy") for name in ("pixels", "labels"))
        return pixels, labels


class EyeScans(VolumeClassification):
    """OCT scans of 32×16×32 voxels (depth, slices, columns): healthy, oedema, serous or epithelial detachment.

    Rendered as NIfTI on first use, and read like any others; needs the extra ``medical``.

    Args:
        num_train: training scans.
        num_val: scans of validation.
        num_test: scans of test and prediction.
        root: folder for the rendered tree; None takes ``$SELFZOO_CACHE`` or ``~/.cache/selfzoo``.
        batch_size: training scans a step, on every device.
        eval_batch_size: scans a batch in evaluation.
        num_workers: loader processes; 0 loads in the training process.
        crop: sides of training windows in voxels; None gives whole scans.
        num_crops: windows of each scan in supervised training.
        **common: see :class:`~datamodules.volumes.VolumeDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "eye_scans"
    classes: ClassVar[tuple[str, ...]] = OCT_CLASSES
    num_classes = len(OCT_CLASSES)
    eval_classes: ClassVar[tuple[int, ...]] = tuple(range(len(OCT_CLASSES)))
    layout: ClassVar[Mapping[str, Layout]] = {"root": rendered_layout("EyeScans")}

    def __init__(
        self,
        num_train: int = 600,
        num_val: int = 100,
        num_test: int = 200,
        root: str | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        crop: Size3 | None = OCT_SIZE,
        num_crops: int = 1,
        **common: Any,
    ) -> None:
        counts = {"train": num_train, "val": num_val, "test": num_test}
        self._tree = RenderedVolumes(
            "eye_scans", [GENERATOR_VERSION], counts, ("background", "retina"), self._render
        )
        self._base = Path(root).expanduser() if root else cache_root()
        super().__init__(
            root=str(self._tree.folder(self._base)),
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            crop=crop,
            num_crops=num_crops,
            **common,
        )

    @classmethod
    def default_processing(cls) -> Processing:
        """The stored grid and grey levels."""
        return Processing(spacing=None, window=(0.0, 255.0), crop_foreground=False)

    def prepare_data(self) -> None:
        """Render the scans and process them, unless they are there already."""
        self._tree.ensure(self._base)
        super().prepare_data()

    def class_of(self, pair: Pair) -> int:
        """The class, from the seed in the scan's name."""
        return int(pair.name.rpartition("_")[2]) % len(OCT_CLASSES)

    @staticmethod
    def _render(seed: int) -> Rendering:
        scan = oct_scan(seed)
        return Rendering(scan, (scan > 60).astype(np.uint8), _AFFINE)
