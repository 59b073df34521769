"""Labelled and unlabelled volumes together, for the omni-supervised stage of VoCo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch.utils.data import DataLoader

from datamodules.base import BenchmarkDataModule
from datamodules.layout import Layout, LayoutReport
from datamodules.volumes import VolumeDataModule


class OmniVolumes(BenchmarkDataModule):
    """Two sets of volumes side by side: training batches are ``{"labelled": ..., "unlabelled": ...}``.

    The parts are what their datamodules make them: windows with labels, and windows with views. The shorter epoch
    starts again until the longer one is over. Evaluation and prediction are those of the unlabelled set.

    Args:
        labelled: a set with labels, and without ``views``.
        unlabelled: a set with ``views``.

    Raises:
        ValueError: views are set in the wrong one.
    """

    name = "omni_volumes"
    layout: ClassVar[Mapping[str, Layout]] = {}
    module_arguments = ("labelled", "unlabelled")

    def __init__(self, labelled: VolumeDataModule, unlabelled: VolumeDataModule) -> None:
        if labelled.views is not None or unlabelled.views is None:
            raise ValueError(
                "data.unlabelled must have views, and data.labelled, whose labels are read, must not."
            )
        super().__init__(unlabelled.batch_size, unlabelled.eval_batch_size, unlabelled.num_workers)
        self.parts = {"labelled": labelled, "unlabelled": unlabelled}
        self.classes, self.num_classes = labelled.classes, labelled.num_classes  # type: ignore[misc]

    def needs(self, stage: str | None = None) -> dict[str, dict[str, bool]]:
        """What both parts read."""
        found = {name: part.needs(stage) for name, part in self._parts(stage).items()}
        return {f"{name}.{root}": splits for name, needs in found.items() for root, splits in needs.items()}

    def inspect(self, stage: str | None = None) -> dict[str, LayoutReport]:
        """Both roots compared with their layouts."""
        found = {name: part.inspect(stage) for name, part in self._parts(stage).items()}
        return {
            f"{name}.{root}": report for name, reports in found.items() for root, report in reports.items()
        }

    def prepare_data(self) -> None:
        """Prepare both parts."""
        for part in self.parts.values():
            part.trainer = self.trainer
            part.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Set up what a stage reads."""
        for part in self._parts(stage).values():
            part.trainer = self.trainer
            part.setup(stage)
        self.classes, self.num_classes = self._labelled.classes, self._labelled.num_classes  # type: ignore[misc]

    def train_dataloader(self) -> dict[str, DataLoader[Any]]:  # type: ignore[override]
        """One loader for each part."""
        for part in self.parts.values():
            part.future_batches = self.future_batches
        return {name: part.train_dataloader() for name, part in self.parts.items()}

    def val_dataloader(self) -> DataLoader[Any]:
        """Unlabelled volumes."""
        return self._unlabelled.val_dataloader()

    def test_dataloader(self) -> DataLoader[Any]:
        """Unlabelled volumes."""
        return self._unlabelled.test_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        """Unlabelled volumes."""
        return self._unlabelled.predict_dataloader()

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Each part as its datamodule makes it."""
        if "labelled" not in batch:
            return self._unlabelled.on_after_batch_transfer(batch, dataloader_idx)
        made = {
            name: part.on_after_batch_transfer(batch[name], dataloader_idx)
            for name, part in self.parts.items()
        }
        futures = zip(*(made[name].pop("future", []) for name in made), strict=True)
        future = [dict(zip(made, step, strict=True)) for step in futures]
        return {**made, "future": future} if future else made

    @property
    def _labelled(self) -> VolumeDataModule:
        return self.parts["labelled"]

    @property
    def _unlabelled(self) -> VolumeDataModule:
        return self.parts["unlabelled"]

    def _parts(self, stage: str | None) -> dict[str, VolumeDataModule]:
        """Only training reads labels."""
        return self.parts if stage in (None, "fit") else {"unlabelled": self._unlabelled}
