"""EyePACS (Kaggle, Diabetic Retinopathy Detection, 2015): grades of diabetic retinopathy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from datamodules.eye_sets import EyeImages, csv_column
from datamodules.image_sets import ImageSubset, balanced_choice
from datamodules.layout import Layout, LayoutError, Pair, Split


class EyePACS(EyeImages):
    """35,126 graded photographs of 17,563 patients, ``train/<id>_{left,right}.jpeg`` and ``trainLabels.csv``.

    Both eyes of a patient are trained on or both held out: patients are drawn with equal shares of their worse grades.

    Args:
        **common: see :class:`~datamodules.eye_sets.EyeImages`; of ``num_val`` half are patients.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "eyepacs"
    classes: ClassVar[tuple[str, ...]] = ("none", "mild", "moderate", "severe", "proliferative")
    num_classes = 5
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="EyePACS",
            images="train",
            suffix=".jpeg",
            labels=(),
            splits={"train": Split("*", (35126,))},
            origin="kaggle.com/c/diabetic-retinopathy-detection: train.zip and trainLabels.csv.zip",
        )
    }
    default_num_val = 3500

    def class_of(self, split: str, base: Path, pairs: Sequence[Pair]) -> list[str]:
        """The grades of ``trainLabels.csv``."""
        path = base.parent / "trainLabels.csv"
        grades = csv_column(path, "image", "level")
        for pair in pairs:
            if grades.get(pair.name) not in ("0", "1", "2", "3", "4"):
                raise LayoutError(f"{path} has no grade 0..4 of {pair.name}, but {grades.get(pair.name)!r}")
        return [self.classes[int(grades[pair.name])] for pair in pairs]

    def _held_out(self) -> tuple[ImageSubset, ImageSubset]:
        """As the parent's, by patients."""
        everything = ImageSubset(self.source("train"))
        names = everything.source.names(everything.positions) or []
        patients, patient = np.unique([name.rpartition("_")[0] for name in names], return_inverse=True)
        count = max(1, self.num_val // 2)
        if count >= len(patients):
            raise ValueError(f"num_val={self.num_val} must leave some of the {len(patients)} patients.")
        worse = np.zeros(len(patients), np.int64)
        np.maximum.at(worse, patient, everything.labels)
        held = np.isin(patient, balanced_choice(worse, count, self.split_seed))
        return everything.part(np.flatnonzero(~held)), everything.part(np.flatnonzero(held))
