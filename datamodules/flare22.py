"""FLARE22 (Ma et al., 2022): thirteen organs in abdominal CT, few labels, many volumes without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from datamodules.layout import Layout, Pair, Split
from datamodules.volume_lists import folder_pairs, listed_layout
from datamodules.volumes import VolumeDataModule

#: Where images and labels lie without a list.
_FOLDERS: Final = (("imagesTr", "labelsTr"), ("images", "labels"))


class FLARE22(VolumeDataModule):
    """50 labelled CT volumes, of which the VoCo release trains on 40 and validates on 10.

    ``root`` holds ``dataset.json`` with that split; or, without it, ``images`` and ``labels`` (``imagesTr`` and
    ``labelsTr``) as downloaded: there cases 1 to 10 are validation volumes, which is the same split. The 2,000 volumes
    without labels are read with :class:`~datamodules.volume_folders.VolumeFolders`.

    Arguments are those of :class:`~datamodules.volumes.VolumeDataModule`.
    """

    name = "flare22"
    classes = (
        "background", "liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava",
        "right adrenal gland", "left adrenal gland", "gallbladder", "esophagus", "stomach", "duodenum", "left kidney",
    )  # fmt: skip
    num_classes = 14
    eval_classes = tuple(range(1, 14))
    test_split = "val"
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": listed_layout(
            "FLARE22",
            "flare22.grand-challenge.org (registration): the labelled cases",
            "dataset.json",
            train=Split("training", (40,)),
            val=Split("validation", (10,)),
            test=Split("test", (200,)),
        )
    }

    def find(self, root: Path, split: str) -> list[Pair]:
        """The volumes of the list, or those in the folders."""
        if (root / self.list_file).is_file() or split == "test":
            return super().find(root, split)
        for images, labels in _FOLDERS:
            if (root / images).is_dir():
                pairs = folder_pairs(root / images, root / labels)
                return [pair for pair in pairs if (_case(pair) <= 10) == (split == "val")]
        raise FileNotFoundError(f"there is neither {root / self.list_file} nor a folder imagesTr or images")


def _case(pair: Pair) -> int:
    """The number in ``FLARE22_Tr_0001_0000``."""
    parts = pair.name.removesuffix("_0000").rpartition("_")
    if not parts[2].isdecimal():
        raise ValueError(f"{pair.image} is not named like FLARE22_Tr_0001_0000.nii.gz")
    return int(parts[2])
