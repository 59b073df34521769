"""Predicted images as files: PNGs to look at, or the arrays that evaluation servers take."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor

from callbacks.output_folder import PredictionWriter
from zoo.extras import require


class WriteImages(PredictionWriter):
    """In prediction, one file per image, under its own name and truncated to 8 bits.

    Args:
        form: ``png``, or ``mat``: MATLAB files with ``Idenoised_crop`` ``[H, W, 3]`` in [0, 1], not rounded, of which
            the DND server takes 1,000.
        folder: where to write; default ``predictions`` in the trainer's ``default_root_dir``, which the command
            ``zoo`` sets to the run's folder. A trainer that was given no folder writes nothing.

    Raises:
        MisconfigurationException: an unknown form; in prediction, a method that returns no ``image``
            ``[B, 3, H, W]``, or two images of one name.
        ImportError: ``mat`` without scipy.
    """

    written = ("Images", "images")
    family = "write_images"

    def __init__(self, form: Literal["png", "mat"] = "png", folder: str | None = None) -> None:
        if form not in ("png", "mat"):
            raise MisconfigurationException(f"WriteImages(form={form!r}): expected png or mat")
        super().__init__(folder)
        self.form = form

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Write the images of one batch; those without a name get their number in the dataset."""
        folder = self.target(trainer)
        if folder is None:
            return
        if not isinstance(outputs, dict) or not {"image", "index"} <= outputs.keys():
            raise MisconfigurationException(
                f"WriteImages needs images: {type(pl_module).__name__}.predict_step must return a dict with 'image' "
                "[B, 3, H, W] and 'index'"
            )
        folder.mkdir(parents=True, exist_ok=True)
        names = outputs.get("name") or [f"{index:05d}" for index in outputs["index"].tolist()]
        for image, name in zip(outputs["image"], names, strict=True):
            path = folder / f"{name}.{self.form}"
            self.claim(path, path.name)
            self._write(image.float().permute(1, 2, 0).cpu(), path)

    def _write(self, image: Tensor, path: Path) -> None:
        if self.form == "png":
            Image.fromarray((255 * image.clamp(0, 1)).byte().numpy()).save(path)
        else:
            require("scipy.io", "denoising", "WriteImages(form='mat')").savemat(
                path, {"Idenoised_crop": image.numpy()}
            )
