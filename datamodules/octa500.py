"""OCTA-500 (Li et al., IPN-V2, 2020): OCT and OCT angiography of 500 eyes with diagnoses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from datamodules.eye_sets import EyeVolumes, sheet_rows
from datamodules.layout import Layout, Pair, Split

Field = Literal["6mm", "3mm"]
#: Numbers of the eyes of every split, as the authors segment them: first and last.
_SPLITS: Final = {
    "6mm": {"train": (10001, 10180), "val": (10181, 10200), "test": (10201, 10300)},
    "3mm": {"train": (10301, 10440), "val": (10441, 10450), "test": (10451, 10500)},
}
_DISEASES: Final = {
    "6mm": ("NORMAL", "AMD", "CNV", "CSC", "DR", "RVO", "OTHERS"),
    "3mm": ("NORMAL", "AMD", "CNV", "DR"),
}
_TABLE: Final = "Text labels.xlsx"


def _layout(field: Field, modality: str) -> Layout:
    splits = {name: Split("*", (last - first + 1,)) for name, (first, last) in _SPLITS[field].items()}
    return Layout(
        title=f"OCTA-500 ({field}, {modality})",
        images=f"OCTA_{field}/{modality}",
        suffix="",
        labels=(),
        splits=splits,
        origin="ieee-dataport.org/open-access/octa-500 (registration)",
        unit="volumes",
    )


class OCTA500(EyeVolumes):
    """Which disease an eye has: 300 eyes of a field of 6 mm, or 200 of 3 mm.

    ``root`` holds ``OCTA_6mm`` and ``OCTA_3mm``; in them a folder of .bmp slices per eye below ``OCT`` and ``OCTA``,
    and ``Text labels.xlsx`` with the columns ID and Disease.

    Args:
        field: ``6mm`` (seven classes) or ``3mm`` (four).
        modality: ``OCT`` or ``OCTA``.
        **common: see :class:`~datamodules.eye_sets.EyeVolumes`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "octa500"
    classes: ClassVar[tuple[str, ...]] = _DISEASES["6mm"]
    num_classes = 7
    eval_classes: ClassVar[tuple[int, ...]] = tuple(range(7))
    layout: ClassVar[Mapping[str, Layout]] = {"root": _layout("6mm", "OCT")}
    test_split = "test"
    holds_out_val = False

    def __init__(self, field: Field = "6mm", modality: Literal["OCT", "OCTA"] = "OCT", **common: Any) -> None:
        for argument, value, allowed in (
            ("field", field, ("6mm", "3mm")),
            ("modality", modality, ("OCT", "OCTA")),
        ):
            if value not in allowed:
                raise ValueError(f"{argument} must be one of {', '.join(allowed)}, got {value!r}.")
        super().__init__(**common)
        self.field: Field = field
        self.modality = modality
        self.classes, self.num_classes = _DISEASES[field], len(_DISEASES[field])  # type: ignore[misc]
        self.eval_classes = tuple(range(self.num_classes))  # type: ignore[misc]

    def tree(self) -> Layout:
        """The layout of the field and modality."""
        return _layout(self.field, self.modality)

    def find(self, root: Path, split: str) -> list[Pair]:
        """The folders of a split; ValueError where the table cannot be read."""
        self.read_diagnoses(root)
        first, last = _SPLITS[self.field][split]
        base = root / self.tree().images
        folders = sorted(path for path in base.glob("[0-9]*") if path.is_dir())
        return [Pair(path, None, path.name) for path in folders if first <= int(path.name) <= last]

    def read_diagnoses(self, root: Path) -> Mapping[str, int]:
        """The diseases of the table."""
        path = root / f"OCTA_{self.field}" / _TABLE
        found = {}
        for row in sheet_rows(path):
            disease = str(row.get("Disease")).strip().upper()
            if disease not in self.classes:
                raise ValueError(
                    f"{path} tells the disease {row.get('Disease')!r} of eye {row.get('ID')}: expected one of "
                    f"{', '.join(self.classes)}"
                )
            found[str(int(row["ID"]))] = self.classes.index(disease)
        return found
