"""SIDD (Abdelhamed et al., CVPR 2018): smartphone photographs with their own noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodules.denoising import WholePictures
from datamodules.layout import Layout, LayoutError, Split
from datamodules.mat_files import read_blocks
from datamodules.patched_images import PatchedImages
from datamodules.readers import read_image

#: Variable, and stem of the file, of noisy and clean blocks by split.
_BLOCKS = {
    "val": ("ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb"),
    "predict": ("BenchmarkNoisyBlocksSrgb", None),
}


class SIDD(PatchedImages):
    """SIDD-Medium sRGB: 320 noisy images of 160 scenes, 1,280 blocks to validate, 1,280 for the server.

    Results are customarily reported on the validation blocks, so test shows them, too. ``zoo predict`` denoises the
    benchmark's blocks. Blocks are named ``<image>_<block>``, both counted from 0.

    Args:
        root: folder that holds ``SIDD_Medium_Srgb``; needed for training only.
        blocks_root: folder of ``ValidationNoisyBlocksSrgb.mat``, ``ValidationGtBlocksSrgb.mat`` and, for prediction,
            ``BenchmarkNoisyBlocksSrgb.mat``; None takes ``root``.
        **common: see :class:`~datamodules.patched_images.PatchedImages`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "sidd"
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="SIDD-Medium sRGB",
            images="SIDD_Medium_Srgb/Data",
            suffix=".PNG",
            labels=(),
            splits={"train": Split("*/*NOISY*", (320,))},
            origin="abdokamel.github.io/sidd: SIDD_Medium_Srgb (12 GB)",
        ),
        "blocks_root": Layout(
            title="SIDD blocks",
            images=".",
            suffix=".mat",
            labels=(),
            splits={
                "val": Split(("ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb"), (2,)),
                "predict": Split("BenchmarkNoisyBlocksSrgb", (1,)),
            },
            origin="abdokamel.github.io/sidd: validation data and benchmark data, sRGB blocks",
            unit="files",
        ),
    }
    predict_split = "predict"
    default_border = 10

    def __init__(self, root: str | None = None, blocks_root: str | None = None, **common: Any) -> None:
        super().__init__(root, **common)
        self.blocks_root = blocks_root if blocks_root is not None else root

    @staticmethod
    def read(path: Path) -> np.ndarray:
        """A noisy image ``[H, W, 3]`` uint8."""
        return read_image(path).permute(1, 2, 0).numpy()

    def needs(self, stage: str | None = None) -> dict[str, dict[str, bool]]:
        """Training images, and the blocks of evaluation."""
        blocks = dict.fromkeys(self.eval_splits(stage).values(), False)
        images = {"root": {"train": False}} if stage in (None, "fit") else {}
        return {**images, **({"blocks_root": blocks} if blocks else {})}

    def evaluated(self, stage: str | None) -> dict[str, Any]:
        """The blocks of a stage; LayoutError where noisy and clean ones do not belong together."""
        return {name: self._blocks(split) for name, split in self.eval_splits(stage).items()}

    def _blocks(self, split: str) -> WholePictures:
        assert self.blocks_root is not None
        folder, (noisy_name, clean_name) = Path(self.blocks_root).expanduser(), _BLOCKS[split]
        noisy = read_blocks(folder / f"{noisy_name}.mat", noisy_name)
        clean = None if clean_name is None else read_blocks(folder / f"{clean_name}.mat", clean_name)
        if clean is not None and clean.shape != noisy.shape:
            raise LayoutError(
                f"{folder}: {noisy_name} holds {list(noisy.shape)} values and {clean_name} {list(clean.shape)}: they "
                "do not belong together"
            )
        names = [f"{number // 32:02d}_{number % 32:02d}" for number in range(len(noisy))]
        return WholePictures(noisy, names, clean)
