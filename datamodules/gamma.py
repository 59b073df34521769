"""GAMMA (MICCAI 2021): grades of glaucoma from a photograph and an OCT scan of the same eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

from datamodules.eye_sets import EyeImages, EyeVolumes, one_of, sheet_rows
from datamodules.layout import Layout, LayoutError, Pair, Split

GRADES: Final = ("non", "early", "mid_advanced")
_TABLE: Final = "training_GT.xlsx"
_ORIGIN: Final = "gamma.grand-challenge.org (registration): the training part with training_GT.xlsx"


def grades(root: Path) -> dict[str, int]:
    """Four-digit number of an eye → its grade, from ``training_GT.xlsx``.

    Raises:
        LayoutError: the table cannot be read, or a row marks no grade.
    """
    path = root / _TABLE
    return {f"{int(row['data']):04d}": one_of(row, GRADES, path) for row in sheet_rows(path)}


class GAMMA(EyeImages):
    """The 100 photographs: ``<id>/<id>.jpg``, and ``training_GT.xlsx`` beside the folders."""

    name = "gamma"
    classes: ClassVar[tuple[str, ...]] = GRADES
    num_classes = 3
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="GAMMA",
            images=".",
            suffix=".jpg",
            labels=(),
            splits={"train": Split("[0-9]*/[0-9]*", (100,))},
            origin=_ORIGIN,
        )
    }
    default_num_val = 20

    def class_of(self, split: str, base: Path, pairs: Sequence[Pair]) -> list[str]:
        """The grades of the table."""
        known = grades(base)
        missing = [pair.name for pair in pairs if pair.name not in known]
        if missing:
            raise LayoutError(f"{base / _TABLE} has no grade of {len(missing)} eyes, e.g. {missing[0]}")
        return [GRADES[known[pair.name]] for pair in pairs]


class GAMMAScans(EyeVolumes):
    """The 100 OCT scans, 256 slices each: ``<id>/<id>_img/*.jpg``, and ``training_GT.xlsx`` beside the folders."""

    name = "gamma_scans"
    classes: ClassVar[tuple[str, ...]] = GRADES
    num_classes = 3
    eval_classes: ClassVar[tuple[int, ...]] = (0, 1, 2)
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="GAMMA",
            images=".",
            suffix="_img",
            labels=(),
            splits={"train": Split("*/*", (100,))},
            origin=_ORIGIN,
            unit="volumes",
        )
    }
    default_num_val = 20

    def find(self, root: Path, split: str) -> list[Pair]:
        """The folders of slices; ValueError where the table cannot be read."""
        self.read_diagnoses(root)
        folders = sorted(path for path in root.glob("[0-9]*/[0-9]*_img") if path.is_dir())
        return [Pair(path, None, path.parent.name) for path in folders]

    def read_diagnoses(self, root: Path) -> Mapping[str, int]:
        """The grades of the table."""
        return grades(root)
