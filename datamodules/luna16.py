"""LUNA16 (Setio et al., 2017): chest CT, to pre-train on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from datamodules.layout import Layout, Pair, Split
from datamodules.pretraining_volumes import PretrainingVolumes
from datamodules.volume_files import SUFFIXES, stem_of
from datamodules.volume_processing import Processing


class LUNA16(PretrainingVolumes):
    """888 chest CT volumes in ten folders, as MetaImages (``subset0/<series>.mhd`` with ``.raw``) or as NIfTI files.

    Arguments are those of :class:`~datamodules.volumes.VolumeDataModule`.
    """

    name = "luna16"
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="LUNA16",
            images=".",
            suffix=".mhd",
            labels=(),
            splits={"train": Split("subset*/*", (888,))},
            origin="luna16.grand-challenge.org, zenodo.org: subset0.zip to subset9.zip",
            unit="volumes",
        )
    }

    @classmethod
    def default_processing(cls) -> Processing:
        """Of VoCo's chest group: thick slices, and a window of lungs."""
        return Processing(spacing=(1.25, 1.25, 5.0), window=(-1000.0, 500.0))

    def find(self, root: Path, split: str) -> list[Pair]:
        """All volumes of all subsets, by whichever suffix they have."""
        files = sorted(root.glob("subset*/*"))
        return [Pair(path, None, stem_of(path)) for path in files if path.name.endswith(SUFFIXES)]
