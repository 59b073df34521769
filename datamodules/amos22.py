"""AMOS22 (Ji et al., NeurIPS 2022): fifteen organs in abdominal CT and MRI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, get_args

from datamodules.layout import Layout, Pair, Split
from datamodules.volume_lists import listed_layout
from datamodules.volume_processing import Processing
from datamodules.volumes import VolumeDataModule

Modality = Literal["ct", "mri", "both"]

#: Volumes are numbered; those of MRI from 501 on.
_FIRST_MRI: Final = 501
_COUNTS: Final = {"ct": (200, 100, 200), "mri": (40, 20, 40), "both": (240, 120, 240)}


def _layout(modality: Modality) -> Layout:
    train, val, test = _COUNTS[modality]
    return listed_layout(
        f"AMOS22 ({modality})",
        "amos22.grand-challenge.org, zenodo.org/record/7262581: amos22.zip",
        "dataset.json",
        train=Split("training", (train,)),
        val=Split("validation", (val,)),
        test=Split("test", (test,)),
    )


class AMOS22(VolumeDataModule):
    """200 CT volumes for training and 100 for validation, on which results are reported; or 40 and 20 of MRI; or both.

    CT is processed as BTCV is; MRI is cut at its percentiles. ``predict_split: test`` predicts volumes whose labels are
    not public.

    Args:
        modality: ``ct``, ``mri`` or ``both``.
        processing: what is done to CT; None takes BTCV's. MRI takes the same with ``window`` left out.
        **common: see :class:`~datamodules.volumes.VolumeDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "amos22"
    classes = (
        "background", "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach",
        "aorta", "inferior vena cava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum",
        "bladder", "prostate or uterus",
    )  # fmt: skip
    num_classes = 16
    eval_classes = tuple(range(1, 16))
    test_split = "val"
    layout: ClassVar[Mapping[str, Layout]] = {"root": _layout("ct")}

    def __init__(
        self, modality: Modality = "ct", processing: Processing | None = None, **common: Any
    ) -> None:
        if modality not in get_args(Modality):
            raise ValueError(f"modality must be one of {', '.join(get_args(Modality))}, got {modality!r}.")
        self.modality: Modality = modality
        super().__init__(processing=processing, **common)

    def tree(self) -> Layout:
        """The layout, with the modality's numbers of volumes."""
        return _layout(self.modality)

    def find(self, root: Path, split: str) -> list[Pair]:
        """The modality's volumes of the list."""
        return [p for p in super().find(root, split) if self.modality in ("both", modality_of(p))]

    def processing_of(self, pair: Pair) -> Processing:
        """MRI has no Hounsfield units."""
        return self.processing if modality_of(pair) == "ct" else replace(self.processing, window=None)


def modality_of(pair: Pair) -> Modality:
    """``ct`` or ``mri``, by the number in a volume's name (``amos_0507``)."""
    return "mri" if int(pair.name.rpartition("_")[2]) >= _FIRST_MRI else "ct"
