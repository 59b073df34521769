"""Sets of volumes that are there to pre-train on."""

from __future__ import annotations

from typing import ClassVar

from datamodules.volumes import VolumeDataModule


class PretrainingVolumes(VolumeDataModule):
    """Volumes without labels: ``views`` must be set to train. Some volumes are held out for validation.

    Arguments are those of :class:`~datamodules.volumes.VolumeDataModule`.
    """

    classes: ClassVar[tuple[str, ...]] = ()
    num_classes = 0
    eval_classes = ()
    label_maps = False
    test_split = "val"
    holds_out_val = True
    default_num_val = 8

    def setup(self, stage: str | None = None) -> None:
        """Open the processed volumes of a stage.

        Raises:
            ValueError: there is nothing to learn without views.
            LayoutError: the root is not as its layout declares.
        """
        if stage == "fit" and self.views is None:
            raise ValueError(
                f"{type(self).__name__} has no labels: set data.views to {{class_path: zoo.nn.VolumeCrops}}."
            )
        super().setup(stage)
