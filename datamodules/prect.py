"""PreCT-160K (Wu et al., 2024): thirty sources of CT, to pre-train VoCo on, in the layout of its release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, NamedTuple

from datamodules.layout import Layout, LayoutError, Pair, Split
from datamodules.pretraining_volumes import PretrainingVolumes
from datamodules.volume_lists import listed_pairs, read_list, uniquely_named
from datamodules.volume_processing import Processing
from datamodules.volume_sets import Size3

Group = Literal["abdomen", "lesion", "chest", "headneck"]

#: Size to which the release brings volumes of some groups; of the others it cuts windows of this size.
_SIZE: Final[Size3] = (192, 192, 64)
_GROUPS: Final[dict[str, Processing]] = {
    "abdomen": Processing(),
    "lesion": Processing(resize=_SIZE),
    "chest": Processing(spacing=(1.25, 1.25, 5.0), window=(-1000.0, 500.0)),
    "headneck": Processing(resize=_SIZE),
}
#: How often a pass shows a group's volumes, so that chest does not drown the others.
_REPETITIONS: Final = {"abdomen": 8, "lesion": 8, "chest": 1, "headneck": 8}


class _Source(NamedTuple):
    """A list, the folder that its paths are relative to, and the group of its volumes."""

    file: str
    folder: str
    group: Group


_SOURCES: Final[dict[str, _Source]] = {
    "BTCV": _Source("dataset_0.json", "BTCV", "abdomen"),
    "FLARE22": _Source("dataset.json", "Flare22", "abdomen"),
    "AMOS22": _Source("dataset_CT.json", "Amos2022", "abdomen"),
    "WORD": _Source("dataset.json", "WORD", "abdomen"),
    "FLARE23": _Source("flare23_new.json", "Flare23", "abdomen"),
    "PANORAMA": _Source("PANORAMA.json", "PANORAMA", "abdomen"),
    "AbdomenAtlas": _Source("AbdomenAtlas1.0.txt", "AbdomenAtlasMini1.0", "abdomen"),
    "LiTS": _Source("dataset_lits.json", "Dataset003_Liver", "abdomen"),
    "Pancreas": _Source("dataset_panc.json", "Dataset007_Pancreas", "abdomen"),
    "KiTS23": _Source("dataset_kits.json", "Dataset220_KiTS2023", "abdomen"),
    "HealthyLiver": _Source("healthy_ct_liver.json", "HealthyCT/healthy_ct", "abdomen"),
    "HealthyPancreas": _Source("healthy_ct_panc.json", "HealthyCT/healthy_ct", "abdomen"),
    "HealthyKidney": _Source("healthy_ct_kidney.json", "HealthyCT/healthy_ct", "abdomen"),
    "DeepLesion": _Source("DeepLesion.json", "DeepLesion", "lesion"),
    "LUNA16": _Source("dataset_LUNA16_0.json", "Luna16-jx", "chest"),
    "TCIAcovid19": _Source("dataset_TCIAcovid19_0.json", "TCIAcovid19", "chest"),
    "STOIC21": _Source("stoic21.json", "stoic21", "chest"),
    "LIDC": _Source("LIDC.json", "LIDC_convert_v1", "chest"),
    "StonyBrookChestCT": _Source("StonyBrookChestCT.json", "StonyBrookChestCT_v1", "chest"),
    "MELA": _Source("MELA.json", "MELA", "chest"),
    "CT-RATE": _Source("ct_rate.json", "CT-RATE/dataset/train", "chest"),
    "NLST": _Source("NLST_convert_v1.json", "NLST_convert_v1", "chest"),
    "HNSCC": _Source("HNSCC.json", "HNSCC_convert_v1", "headneck"),
    "QIN-HeadNeck": _Source("QIN_HeadNeck.json", "QIN_convert_v1", "headneck"),
    "HeadNeckCT": _Source("HeadNeckPet.json", "HNPC_convert_v1", "headneck"),
    "TCGA-HNSC": _Source("TCGA_HNSC.json", "TCGA-HNSC_convert_v1", "headneck"),
    "OPC-Radiomics": _Source("OPCRadiomics.json", "OPCRadiomics", "headneck"),
    "TotalSegmentator": _Source("Totalsegmentator_dataset.json", "Totalsegmentator_dataset", "headneck"),
    "Colonography": _Source("ColonographyTrials.json", "CT_COLONOGRAPHY_converted_v1", "headneck"),
}
#: The eight sources of the conference version.
TEN_THOUSAND: Final = (
    "BTCV", "TCIAcovid19", "LUNA16", "FLARE23", "HNSCC", "STOIC21", "LIDC", "TotalSegmentator",
)  # fmt: skip
_SECTIONS: Final = ("training", "validation")


class PreCT(PretrainingVolumes):
    """160,167 CT volumes, or those of the sources that are there.

    ``root`` holds a folder for each source, named as in the release, and the release's lists in ``jsons`` or in the
    source's own folder; paths in a list are relative to the source's folder. Sources without a list are left out. Each
    group has its own spacing, window and size; a pass shows volumes of abdomen, head and neck eight times.

    Args:
        sources: names of the sources to use (``10k``: the eight of the conference version); None takes all there are.
        resize: sides to which all volumes are brought, instead of those of their group (conference version: 384, 384,
            96).
        crop: sides of the windows that views are made of; None takes volumes whole, which needs ``resize``.
        batch_size: training volumes a step, on every device.
        **common: see :class:`~datamodules.volumes.VolumeDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "prect"
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="PreCT-160K",
            images="jsons",
            suffix=".json",
            labels=(),
            splits={"train": Split("*")},
            origin="the sources' own sites; lists: github.com/Luffy03/Large-Scale-Medical, Self-supervised/jsons",
            unit="volumes",
        )
    }

    def __init__(
        self,
        sources: tuple[str, ...] | Literal["10k"] | None = None,
        resize: Size3 | None = None,
        crop: Size3 | None = _SIZE,
        batch_size: int = 2,
        **common: Any,
    ) -> None:
        chosen = TEN_THOUSAND if sources == "10k" else tuple(_SOURCES) if sources is None else tuple(sources)
        if unknown := [name for name in chosen if name not in _SOURCES]:
            raise ValueError(f"sources: {unknown[0]!r} is none of {', '.join(_SOURCES)}.")
        super().__init__(crop=crop, batch_size=batch_size, **common)
        self.sources, self.resize, self._all = chosen, resize, sources is None
        self._group: dict[Path, Group] = {}

    def find(self, root: Path, split: str) -> list[Pair]:
        """The volumes of all lists that are there.

        Raises:
            LayoutError: a source that was named has no list.
        """
        pairs: list[Pair] = []
        for name in self.sources:
            source = _SOURCES[name]
            files = [root / source.folder / source.file]
            if source.file != "dataset.json":  # a name that tells no source
                files.append(root / "jsons" / source.file)
            file = next((file for file in files if file.is_file()), None)
            if file is None and not self._all:
                raise LayoutError(f"source {name} has no list {' or '.join(map(str, files))}")
            if file is not None:
                found = _listed(file, root / source.folder)
                self._group |= {pair.image: source.group for pair in found}
                pairs += found
        return uniquely_named(pairs)

    def processing_of(self, pair: Pair) -> Processing:
        """That of the volume's group."""
        processing = _GROUPS[self._group[pair.image]]
        return processing if self.resize is None else replace(processing, resize=self.resize)

    def repetitions(self, pair: Pair) -> int:
        """Eight, but one of chests."""
        return _REPETITIONS[self._group[pair.image]]


def _listed(file: Path, base: Path) -> list[Pair]:
    """The volumes of a list, without labels; of a text file each line is the folder of a ``ct.nii.gz``."""
    if file.suffix == ".txt":
        folders = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [Pair(base / folder / "ct.nii.gz", None, folder) for folder in folders]
    content = read_list(file)
    found = [pair for section in _SECTIONS for pair in listed_pairs(content, section, base)]
    return [pair._replace(label=None) for pair in found]
