"""Volumes with one class each."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch

from datamodules.layout import Pair
from datamodules.volumes import VolumeDataModule


class VolumeClassification(VolumeDataModule):
    """Volumes with one class each: ``label`` is int64 ``[B]``; label maps are not read.

    Arguments are those of :class:`~datamodules.volumes.VolumeDataModule`; windows of training lie anywhere.
    """

    label_maps = False

    @abstractmethod
    def class_of(self, pair: Pair) -> int:
        """The class of a volume."""

    def setup(self, stage: str | None = None) -> None:
        """Open the processed volumes of a stage, and note their classes."""
        super().setup(stage)
        jobs = [job for group in self.jobs(stage).values() for job in group]
        self._class_by_name = {job.pair.name: self.class_of(job.pair) for job in jobs}

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """As the parent's, with classes."""
        numbers = torch.tensor([self._class_by_name[name] for name in batch["name"]])
        label = numbers.to(batch["volume"].device, non_blocking=True)
        return super().on_after_batch_transfer({**batch, "label": label}, dataloader_idx)
