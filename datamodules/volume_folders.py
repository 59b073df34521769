"""Any set of volumes in plain folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from datamodules.layout import Layout, LayoutError, Pair, Split
from datamodules.volume_lists import folder_pairs
from datamodules.volumes import VolumeDataModule


class VolumeFolders(VolumeDataModule):
    """Your own volumes: every NIfTI or MetaImage file below a folder, labels under the same names in another.

    A label's name may lack the ``_0000`` that nnU-Net appends to images. Validation volumes are held out of training.

    Args:
        images: folder of volumes below ``root``.
        labels: folder of label maps below ``root``; not read in pre-training.
        class_names: names of labels 0, 1, ...
        **common: see :class:`~datamodules.volumes.VolumeDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "volume_folders"
    classes: ClassVar[tuple[str, ...]] = ("background", "foreground")
    num_classes = 2
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="Folders of volumes",
            images="imagesTr",
            suffix=".nii.gz",
            labels=(),
            splits={"train": Split("**/*")},
            origin="your own; see the card",
            unit="volumes",
        )
    }
    test_split = "val"
    holds_out_val = True

    def __init__(
        self,
        images: str = "imagesTr",
        labels: str = "labelsTr",
        class_names: tuple[str, ...] = ("background", "foreground"),
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if len(class_names) < 2:
            raise ValueError(f"class_names must name background and foreground, got {list(class_names)}.")
        self.images, self.labels = images, labels
        self.classes, self.num_classes = tuple(class_names), len(class_names)  # type: ignore[misc]

    def find(self, root: Path, split: str) -> list[Pair]:
        """All files below the folder."""
        if not (root / self.images).is_dir():
            raise LayoutError(f"there is no folder {root / self.images}: set images to that of the volumes")
        return folder_pairs(root / self.images, root / self.labels)
