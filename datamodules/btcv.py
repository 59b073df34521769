"""BTCV, "Multi-Atlas Labeling Beyond the Cranial Vault" (MICCAI 2015): thirteen organs in abdominal CT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from datamodules.layout import Layout, Pair, Split
from datamodules.volume_lists import folder_pairs, listed_layout
from datamodules.volumes import VolumeDataModule

#: Where images and labels lie, in Decathlon's order and as downloaded.
_FOLDERS: Final = (("imagesTr", "labelsTr"), ("RawData/Training/img", "RawData/Training/label"))
#: The six of the customary validation split; without a list, all others train.
_VALIDATION: Final = tuple(f"img{number:04d}" for number in range(35, 41))


class BTCV(VolumeDataModule):
    """24 CT volumes for training, 6 for validation, on which results are reported.

    ``root`` holds ``dataset_0.json`` with the paths of all volumes; or, without it, ``imagesTr`` and ``labelsTr``, or
    ``RawData`` as it was downloaded: there img0035 to img0040 are validation volumes.

    Arguments are those of :class:`~datamodules.volumes.VolumeDataModule`.
    """

    name = "btcv"
    classes = (
        "background", "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach",
        "aorta", "inferior vena cava", "portal and splenic veins", "pancreas", "right adrenal gland",
        "left adrenal gland",
    )  # fmt: skip
    num_classes = 14
    eval_classes = tuple(range(1, 14))
    list_file = "dataset_0.json"
    test_split = "val"
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": listed_layout(
            "BTCV",
            "synapse.org (syn3193805, registration): RawData.zip",
            "dataset_0.json",
            train=Split("training", (24,)),
            val=Split("validation", (6,)),
            test=Split("test", (20,)),
        )
    }

    def find(self, root: Path, split: str) -> list[Pair]:
        """The volumes of the list, or those in the folders."""
        if (root / self.list_file).is_file() or split == "test":
            return super().find(root, split)
        for images, labels in _FOLDERS:
            if (root / images).is_dir():
                files = {pair.name: pair.image for pair in folder_pairs(root / labels, None)}
                return [
                    pair._replace(label=files.get(pair.name.replace("img", "label")))
                    for pair in folder_pairs(root / images, None)
                    if (pair.name in _VALIDATION) == (split == "val")
                ]
        raise FileNotFoundError(
            f"there is neither {root / self.list_file} nor a folder {_FOLDERS[0][0]} or RawData"
        )
