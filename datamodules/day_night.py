"""Adaptation to images whose place was also photographed in good conditions: night and day, rain and sun."""

from __future__ import annotations

import csv
import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.layout import LayoutReport, Pair
from datamodules.readers import (
    BrokenImageError,
    ImageJob,
    SegmentationDataset,
    read_image,
    resized_image,
)
from datamodules.segmentation import UDASegmentation


class PartneredDataset(SegmentationDataset):
    """Images drawn together with their day partners, under ``day``: same size, same window.

    Args:
        pairs: the files.
        partners: the partner of each.
        **kwargs: see :class:`~datamodules.readers.SegmentationDataset`.
    """

    def __init__(self, pairs: Sequence[Pair], partners: Sequence[Path], **kwargs: Any) -> None:
        super().__init__(pairs, **kwargs)
        self.partners = list(partners)
        self._days: dict[int, Tensor] = {}

    def draw(self, index: int, rng: np.random.Generator, rare_class: int | None = None) -> dict[str, Any]:
        """A random window of both images, for training."""
        sample = super().draw(index, rng, rare_class)
        sample["image"], sample["day"] = sample["image"].split(3)
        return sample

    def jobs(self) -> list[ImageJob]:
        """The partners are read as well."""
        # Several images may share a partner.
        return list(
            dict.fromkeys([*super().jobs(), *(ImageJob(p, None, self.resize) for p in self.partners)])
        )

    def load(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Both images stacked ``[6,H,W]``, so that whatever is cut is cut out of both, and the label.

        Raises:
            BrokenImageError: a file cannot be decoded, or image and partner differ in size.
        """
        image, label = super().load(index)
        day = self._days.get(index)
        if day is None:
            stored = self._stored.get(self.partners[index])
            day = stored.read() if stored else resized_image(read_image(self.partners[index]), self.resize)
            if self._cache is not None:
                self._days[index] = day
        if day.shape != image.shape:
            raise BrokenImageError(
                f"Image {self.pairs[index].image} and its day partner {self.partners[index]} differ in size: "
                f"{tuple(image.shape[1:])} and {tuple(day.shape[1:])} (height, width) after resizing."
            )
        return torch.cat([image, day]), label


class PartneredUDA(UDASegmentation):
    """Adaptation whose target images may come with partners: batches then hold ``target.day``.

    Args:
        day: load the partners; False needs neither them nor the lists that name them.
        **kwargs: see :class:`~datamodules.segmentation.UDASegmentation`.
    """

    def __init__(self, day: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.day = day

    @abstractmethod
    def partners(self, root: Path, pairs: Sequence[Pair]) -> list[Path | None]:
        """The day partner of each training image; None where nothing names one."""

    def inspect(self, stage: str | None = None) -> dict[str, LayoutReport]:
        """As for every benchmark; partners that are unknown or not there are problems of the training split."""
        reports = super().inspect(stage)
        target = reports["target_root"]
        train = target.splits.get("train")
        if not self.day or train is None or target.root is None or not train.pairs:
            return reports
        found = self.partners(target.root, train.pairs)
        lost = [p.name for p, partner in zip(train.pairs, found, strict=True) if partner is None]
        absent = [
            partner.relative_to(target.root).as_posix()
            for partner in found
            if partner is not None and not partner.is_file()
        ]
        problems = [
            f"{len(names)} of {len(found)} images {what}: {', '.join(names[:3])} (day: false trains without)"
            for what, names in (("have no known day partner", lost), ("lack their day partner", absent))
            if names
        ]
        train = dataclasses.replace(train, problems=(*train.problems, *problems))
        splits = {**target.splits, "train": train}
        return {**reports, "target_root": dataclasses.replace(target, splits=splits)}

    def target_dataset(self, report: LayoutReport) -> SegmentationDataset:
        """The unlabelled images, with their partners."""
        if not self.day or report.root is None:
            return super().target_dataset(report)
        pairs = self.usable_pairs(report, "train")
        partners = [partner for partner in self.partners(report.root, pairs) if partner is not None]
        return PartneredDataset(
            pairs,
            partners,
            resize=self.resize,
            crop=self.crop if self.crop_target else None,
            cache=self.cache,
        )


def read_correspondences(folder: Path) -> dict[str, str]:
    """All lines ``image,partner`` of the CSV files below ``folder``; both are paths without their suffix.

    Raises:
        ValueError: a line is no pair, or two lines name different partners of one image.
    """
    partners: dict[str, str] = {}
    for file in sorted(folder.rglob("*.csv")):
        for number, line in enumerate(csv.reader(file.open(encoding="utf-8")), start=1):
            if len(line) < 2:
                raise ValueError(
                    f"{file}, line {number}: expected 'image,partner', found {','.join(line)!r}."
                )
            image, partner = (entry.strip() for entry in line[:2])
            if partners.setdefault(image, partner) != partner:
                raise ValueError(
                    f"{file}, line {number}: {image} already has another partner, {partners[image]}."
                )
    return partners
