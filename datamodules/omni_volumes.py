"""Labelled and unlabelled volumes together, for the omni-supervised stage of VoCo."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from datamodules.parts import JoinedBenchmarks
from datamodules.volumes import VolumeDataModule


class OmniVolumes(JoinedBenchmarks):
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
    module_arguments = ("labelled", "unlabelled")

    def __init__(self, labelled: VolumeDataModule, unlabelled: VolumeDataModule) -> None:
        if labelled.views is not None or unlabelled.views is None:
            raise ValueError(
                "data.unlabelled must have views, and data.labelled, whose labels are read, must not."
            )
        super().__init__({"labelled": labelled, "unlabelled": unlabelled}, main="unlabelled")
        self.classes, self.num_classes = labelled.classes, labelled.num_classes  # type: ignore[misc]

    def setup(self, stage: str | None = None) -> None:
        """Set up what a stage reads."""
        super().setup(stage)
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
        part = self.parts["labelled"]
        assert isinstance(part, VolumeDataModule)
        return part

    @property
    def _unlabelled(self) -> VolumeDataModule:
        part = self.parts["unlabelled"]
        assert isinstance(part, VolumeDataModule)
        return part

    def parts_of(self, stage: str | None) -> dict[str, Any]:
        """Only training reads labels."""
        return self.parts if stage in (None, "fit") else {"unlabelled": self._unlabelled}
