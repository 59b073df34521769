"""Predicted label maps as NIfTI files, in the space of the volumes they were made from."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.output_folder import PredictionWriter
from datamodules.volume_files import write_nifti
from datamodules.volume_processing import to_original_space


class WriteVolumes(PredictionWriter):
    """In prediction, one NIfTI file per volume: the size, orientation and affine of its own file, under its name.

    What processing did is undone: spacing, orientation and the cut around the foreground (0 outside it).

    Args:
        folder: where to write; default ``predictions`` in the trainer's ``default_root_dir``, which the command ``zoo``
            sets to the run's folder. A trainer that was given no folder writes nothing.
        suffix: what follows a volume's name: ``.nii.gz``, or ``.nii`` uncompressed, or such as ``_seg.nii.gz``.

    Raises:
        MisconfigurationException: another suffix; in prediction, a method without label maps ``[B, X, Y, Z]``, a
            benchmark without records of its volumes, or two volumes of one name.
    """

    written = ("Label maps", "volumes")
    family = "write_predictions"

    def __init__(self, folder: str | None = None, suffix: str = ".nii.gz") -> None:
        if not suffix.endswith((".nii.gz", ".nii")):
            raise MisconfigurationException(
                f"WriteVolumes(suffix={suffix!r}): label maps are NIfTI files, end it with .nii.gz or .nii"
            )
        super().__init__(folder)
        self.suffix = suffix

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Write the label maps of one batch."""
        folder = self.target(trainer)
        if folder is None:
            return
        loader: Any = trainer.predict_dataloaders
        records = getattr(loader.dataset, "records", None)
        label = outputs.get("label") if isinstance(outputs, dict) else None
        if label is None or label.ndim != 4 or records is None or "index" not in batch:
            raise MisconfigurationException(
                f"WriteVolumes needs label maps of volumes: {type(pl_module).__name__}.predict_step must return a "
                "dict with 'label' [B, X, Y, Z], and the benchmark be a VolumeDataModule"
            )
        for found, index in zip(label.cpu().numpy(), batch["index"].tolist(), strict=True):
            record = records[index]
            path = folder / f"{record.name}{self.suffix}"
            self.claim(path, record.name)
            affine, original = np.array(record.affine), np.array(record.original_affine)
            restored = to_original_space(
                found.astype(np.uint8), affine, tuple(record.original_size), original
            )
            write_nifti(path, restored, original)
