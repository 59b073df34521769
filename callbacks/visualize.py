"""Pictures of what a segmentation method predicts, saved beside its checkpoints and sent to the logger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor

from callbacks.output_folder import output_folder

GAP = 4  # white pixels between pictures


class PredictionPanel(Callback):
    """After each validation, one PNG: a row per image with image, truth, prediction and confidence.

    W&B gets every image with truth and prediction as masks to switch on and off, by name of class; TensorBoard
    gets the panel.

    Args:
        num_images: rows of the panel, taken from the first validation batches.
        folder: where to write; default ``pictures`` in the trainer's ``default_root_dir``, which the command
            ``zoo`` sets to the run's folder. A trainer that was given no folder writes nothing.
    """

    family = "prediction_panel"

    def __init__(self, num_images: int = 4, folder: str | None = None) -> None:
        self.num_images, self.folder = num_images, folder
        self._rows: list[list[np.ndarray]] = []
        self._masks: list[dict[str, np.ndarray]] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start a new panel."""
        self._rows, self._masks = [], []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Predict the first images again (a few of them, so cheap) and colour them."""
        wanted = self.num_images - len(self._rows)
        palette = getattr(getattr(trainer, "datamodule", None), "palette", None)
        if wanted <= 0 or palette is None or not trainer.is_global_zero:
            return
        image = batch["image"][:wanted]
        with torch.no_grad():
            confidence, prediction = pl_module(image).softmax(1).max(1)
        truth = batch["label"][:wanted]  # may be larger than the image: drawn at the image's size
        truth = F.interpolate(truth[:, None].float(), image.shape[-2:], mode="nearest")[:, 0]
        for row in zip(image, truth, prediction, confidence, strict=True):
            self._rows.append(segmentation_row(*row, palette=palette))
        labels = (maps.byte().cpu().numpy() for maps in (truth, prediction))
        self._masks += [{"truth": seen, "prediction": said} for seen, said in zip(*labels, strict=True)]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the panel and hand it to the loggers that take pictures."""
        if not self._rows or trainer.sanity_checking:
            return
        panel = stack_rows(self._rows)
        folder = output_folder(trainer, self.folder, "pictures")
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            panel.save(folder / f"val-step{trainer.global_step:06d}.png")
        classes = getattr(trainer.datamodule, "classes", ())  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                pictures = [row[0] for row in self._rows]
                masks = [wandb_masks(labels, classes) for labels in self._masks]
                logger.log_image("val/predictions", pictures, step=trainer.global_step, masks=masks)
            elif isinstance(logger, TensorBoardLogger):
                pixels = np.asarray(panel)
                logger.experiment.add_image("val/panel", pixels, trainer.global_step, dataformats="HWC")


def wandb_masks(labels: Mapping[str, np.ndarray], classes: Any) -> dict[str, dict[str, Any]]:
    """Label maps ``[H, W]`` by name, as the masks of a ``wandb.Image``; what is no class is called ignore."""
    names = dict(enumerate(classes)) | {255: "ignore"}
    return {name: {"mask_data": label, "class_labels": names} for name, label in labels.items()}


def colorize(label: Tensor, palette: Any) -> np.ndarray:
    """Colours ``[H, W, 3]`` of a label map; what has no colour (ignore) is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8)
    return table[label.cpu().numpy().astype(np.uint8)]


def segmentation_row(
    image: Tensor, truth: Tensor, prediction: Tensor, confidence: Tensor, palette: Any
) -> list[np.ndarray]:
    """Image, truth, prediction and confidence (black 0, white 1) as colour arrays."""
    pixels = (image.clamp(0, 1) * 255).byte().permute(1, 2, 0).cpu().numpy()
    grey = (confidence.float().clamp(0, 1) * 255).byte().cpu().numpy()
    return [pixels, colorize(truth, palette), colorize(prediction, palette), np.stack([grey] * 3, -1)]


def stack_rows(rows: list[list[np.ndarray]]) -> Image.Image:
    """One picture of equally long rows, top to bottom; smaller arrays leave white space."""
    height, width = (max(picture.shape[axis] for row in rows for picture in row) for axis in (0, 1))
    canvas = np.full((len(rows) * (height + GAP) - GAP, len(rows[0]) * (width + GAP) - GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return Image.fromarray(canvas)
