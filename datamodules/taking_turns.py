"""Images and volumes in turn, for methods that learn from both (Uni4Eye)."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch.utils.data import DataLoader

from datamodules.image_sets import DrawnImages
from datamodules.images import ImageDataModule
from datamodules.parts import JoinedBenchmarks
from datamodules.sampling import TurnsLoader
from datamodules.volumes import VolumeDataModule


class TakingTurns(JoinedBenchmarks):
    """Any set of images and any set of volumes: a pass over the volumes, then one over the images, and so on.

    The trainer's epoch is such a round, two of the paper's epochs (even ones 3-D, odd ones 2-D). Batches are those of
    the sets: ``volume`` or ``image``, never both. All training images are shown, whatever their labels. Evaluation
    and prediction go through the volumes, then the images.

    Args:
        images: a set of images, without ``views``; its crops and mirroring augment training.
        volumes: a set of volumes with ``views``, such as :class:`zoo.nn.VolumeFlips`, so that no label maps are read.
        source: what batches of images say of their data sources, ``source`` int64 ``[B]`` (for Uni4Eye++'s dynamic
            head): a number, that of all images; ``label``: the classes of the set are its sources; None: nothing.

    Raises:
        ValueError: views are missing, or set where they do not belong; or no such source.
    """

    name = "taking_turns"
    classes = ()
    num_classes = 0
    eval_classes = ()
    module_arguments = ("images", "volumes")

    def __init__(
        self,
        images: ImageDataModule,
        volumes: VolumeDataModule,
        source: int | Literal["label"] | None = None,
        turns: Literal["passes", "steps"] = "passes",
    ) -> None:
        if images.views is not None or volumes.views is None:
            raise ValueError(
                "data.volumes must have views, such as {class_path: zoo.nn.VolumeFlips}, so that their labels are not "
                "read; data.images must have none."
            )
        if source not in (None, "label") and not (isinstance(source, int) and source >= 0):
            raise ValueError(f"data.source={source!r}: expected a number from 0, label, or nothing")
        if turns not in ("passes", "steps"):
            raise ValueError(f"data.turns={turns!r}: expected passes or steps")
        super().__init__({"volumes": volumes, "images": images}, main="images")
        self.source, self.turns = source, turns

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is done to images and to volumes; the keys tell them apart."""
        return {**self.parts["images"].preprocessing, **self.parts["volumes"].preprocessing}

    def setup(self, stage: str | None = None) -> None:
        """Set up both sets; training reads all images."""
        super().setup(stage)
        if stage in (None, "fit"):
            images = self.parts["images"]
            assert isinstance(images, ImageDataModule)
            images.datasets["train"] = DrawnImages(images.subset("train"), images.draw_seed)

    def train_dataloader(self) -> DataLoader[Any]:
        """A pass over the volumes and one over the images, one after the other or mixed."""
        for part in self.parts.values():
            part.future_batches = self.future_batches
        return self._in_turn("train_dataloader", mixed=self.turns == "steps")

    def val_dataloader(self) -> DataLoader[Any]:
        """Volumes, then images."""
        return self._in_turn("val_dataloader")

    def test_dataloader(self) -> DataLoader[Any]:
        """Volumes, then images."""
        return self._in_turn("test_dataloader")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Volumes, then images."""
        return self._in_turn("predict_dataloader")

    def _in_turn(self, kind: str, mixed: bool = False) -> DataLoader[Any]:
        loaders = [getattr(part, kind)() for part in self.parts.values()]
        return cast("DataLoader[Any]", TurnsLoader(loaders, mixed))

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """The batch as its set makes it."""
        part = self.parts["images" if "image" in batch else "volumes"]
        self.batch_size = part.batch_size  # whoever counts samples asks for that of the batch that runs
        made = part.on_after_batch_transfer(batch, dataloader_idx)
        if self.source is None or "image" not in made:
            return made
        if self.source == "label":
            return {**made, "source": batch["label"]}
        image = made["image"]
        return {**made, "source": torch.full((len(image),), self.source, device=image.device)}
