"""Pictures of what a method sees and says, saved beside its checkpoints and sent to the loggers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor

from callbacks.output_folder import output_folder
from callbacks.pictures import (
    legend_of,
    palette_of,
    position_sheet,
    reconstruction_sheet,
    segmentation_sheet,
    volume_rows,
)
from callbacks.preview import preview
from callbacks.sheet import Cell, sheet
from zoo.method import Method
from zoo.nn.positions import overlap_labels


def publish(
    trainer: L.Trainer, folder: Path | None, name: str, picture: Image.Image, wandb: bool = True
) -> None:
    """Save ``<folder>/<name>-step<step>.png`` and send the picture as ``<name>`` to W&B and TensorBoard.

    Slashes of the name become hyphens in the file's.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{name.replace('/', '-')}-step{trainer.global_step:06d}.png")
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and wandb:
            logger.log_image(name, [picture], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.asarray(picture), trainer.global_step, dataformats="HWC")


def has_readers(trainer: L.Trainer, folder: Path | None) -> bool:
    """Whether a picture would get anywhere from this process."""
    takes = any(isinstance(logger, WandbLogger | TensorBoardLogger) for logger in trainer.loggers)
    return trainer.is_global_zero and (folder is not None or takes)


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
        self._rows: list[dict[str, Tensor]] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start a new panel."""
        self._rows = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Predict the first images again (a few of them, so cheap)."""
        wanted = self.num_images - len(self._rows)
        palette = getattr(getattr(trainer, "datamodule", None), "palette", None)
        if wanted <= 0 or palette is None or not trainer.is_global_zero:
            return
        image = batch["image"][:wanted]
        with torch.no_grad():
            confidence, prediction = pl_module(image).softmax(1).max(1)
        truth = batch["label"][:wanted]  # may be larger than the image: drawn at the image's size
        truth = F.interpolate(truth[:, None].float(), image.shape[-2:], mode="nearest")[:, 0]
        maps = {
            "image": image,
            "truth": truth.byte(),
            "prediction": prediction.byte(),
            "confidence": confidence,
        }
        on_host = {name: values.cpu() for name, values in maps.items()}
        self._rows += [{name: values[i] for name, values in on_host.items()} for i in range(len(image))]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the panel and hand it to the loggers that take pictures."""
        if not self._rows or trainer.sanity_checking:
            return
        benchmark: Any = trainer.datamodule  # type: ignore[attr-defined]
        classes = getattr(benchmark, "classes", ())
        heading = f"Validation after {trainer.global_step} steps"
        panel = segmentation_sheet(self._rows, benchmark.palette, classes, heading)
        publish(trainer, output_folder(trainer, self.folder, "pictures"), "val/panel", panel, wandb=False)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                pictures = [row["image"].clamp(0, 1) for row in self._rows]
                masks = [
                    wandb_masks({name: row[name].numpy() for name in ("truth", "prediction")}, classes)
                    for row in self._rows
                ]
                logger.log_image("val/predictions", pictures, step=trainer.global_step, masks=masks)


def wandb_masks(labels: Mapping[str, np.ndarray], classes: Any) -> dict[str, dict[str, Any]]:
    """Label maps ``[H, W]`` by name, as the masks of a ``wandb.Image``; what is no class is called ignore."""
    names = dict(enumerate(classes)) | {255: "ignore"}
    return {name: {"mask_data": label, "class_labels": names} for name, label in labels.items()}


class ValidationPicture(Callback, ABC):
    """Base of pictures that are drawn of the first validation batch that has what they need.

    Saved as ``pictures/<name>-step<step>.png`` and sent to W&B and TensorBoard. They are drawn by the first process
    alone, in evaluation mode and without gradients.

    Args:
        count: most samples to draw.
        folder: where to write; default ``pictures`` in the trainer's ``default_root_dir``, which the command ``zoo``
            sets to the run's folder. A trainer that was given no folder writes nothing.

    Raises:
        ValueError: ``count`` is below 1.
    """

    #: Name of the picture, and of its series in the loggers.
    name: ClassVar[str]
    #: What a batch must hold.
    needs: ClassVar[tuple[str, ...]]

    def __init__(self, count: int = 4, folder: str | None = None) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}.")
        self.count, self.folder = count, folder
        self._drawn = False

    @abstractmethod
    def draw(self, method: Method, batch: Mapping[str, Any], outputs: Any, benchmark: Any) -> Image.Image:
        """Draw the picture of a batch; ``outputs`` is what the validation step returned."""

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One picture in every validation."""
        self._drawn = trainer.sanity_checking

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Draw the first batch."""
        folder = output_folder(trainer, self.folder, "pictures")
        if self._drawn or not has_readers(trainer, folder) or any(key not in batch for key in self.needs):
            return
        assert isinstance(pl_module, Method)
        with torch.no_grad(), pl_module.forward_context():
            picture = self.draw(pl_module, batch, outputs, getattr(trainer, "datamodule", None))
        publish(trainer, folder, f"val/{self.name}", picture)
        self._drawn = True

    def of(self, method: Method, function: str, returns: str) -> Any:
        """A public function of the method.

        Raises:
            MisconfigurationException: it has none of that name.
        """
        found = getattr(method, function, None)
        if found is None:
            raise MisconfigurationException(
                f"{type(self).__name__} needs {type(method).__name__}.{function}(batch) -> {returns}, which it has "
                "not: leave the callback out of trainer.callbacks"
            )
        return found


class ReconstructionPanel(ValidationPicture):
    """Spectrograms as they are, as they were masked, and as ``method.reconstruct(batch)`` rebuilt them."""

    family = "reconstruction_panel"
    name = "reconstruction"
    needs = ("spectrogram",)

    def draw(self, method: Method, batch: Mapping[str, Any], outputs: Any, benchmark: Any) -> Image.Image:
        """A row per clip."""
        first = {key: value[: self.count] for key, value in batch.items() if isinstance(value, Tensor)}
        parts = self.of(method, "reconstruct", "{original, masked, reconstructed}")(first)
        on_host = {name: values.float().cpu() for name, values in parts.items()}
        return reconstruction_sheet(**on_host, heading=f"Reconstruction after {method.global_step} steps")


class PositionPanel(ValidationPicture):
    """True and predicted overlaps of the crops of one volume, by ``method.positions(batch)``."""

    family = "position_panel"
    name = "positions"
    needs = ("crops", "volume")

    def draw(self, method: Method, batch: Mapping[str, Any], outputs: Any, benchmark: Any) -> Image.Image:
        """A row per crop of the first volume."""
        predicted = self.of(method, "positions", "overlaps [B, n, m]")(batch)[0, : self.count].float().cpu()
        crop_box, base_box = batch["crop_box"][0, : self.count].cpu(), batch["base_box"][0].cpu()
        truth = overlap_labels(crop_box, base_box)
        heading = f"Positions of crops after {method.global_step} steps"
        volume = batch["volume"][0, 0].float().cpu()
        return position_sheet(volume, crop_box, base_box, truth, predicted, heading)


class VolumePanel(ValidationPicture):
    """Volumes in three planes, with truth and prediction laid over them.

    The prediction is what the validation step returned (``{"label": [B, X, Y, Z]}``).
    """

    family = "volume_panel"
    name = "volume"
    needs = ("volume", "label")

    def draw(self, method: Method, batch: Mapping[str, Any], outputs: Any, benchmark: Any) -> Image.Image:
        """Three rows per volume.

        Raises:
            MisconfigurationException: the validation step returns no label maps.
        """
        if not isinstance(outputs, Mapping) or "label" not in outputs:
            raise MisconfigurationException(
                f"VolumePanel draws what validation_step returns, and that of {type(method).__name__} returns no "
                "{'label': [B, X, Y, Z]}: leave the callback out of trainer.callbacks"
            )
        classes: Sequence[str] = getattr(benchmark, "classes", ())
        palette = palette_of(benchmark, max(len(classes), 2))
        rows: list[list[Cell | None]] = []
        maps: list[Tensor] = []
        for i in range(min(self.count, len(batch["volume"]))):
            labels = {"truth": batch["label"][i].cpu(), "prediction": outputs["label"][i].cpu()}
            rows += volume_rows(batch["volume"][i, 0].float().cpu(), labels, palette)
            maps += [label[label > 0] for label in labels.values()]
        titles = ("volume", "truth", "prediction")
        heading = f"Validation after {method.global_step} steps"
        return sheet(rows, titles, heading, legend_of(maps, palette, classes), side=160)


class BatchPreview(Callback):
    """Pictures of what a training step is about to see: views, mixed images with pseudo-labels, strong views.

    Drawn by :func:`callbacks.preview.preview` at a few steps, before the forward; every other step costs nothing.

    Args:
        steps: of the optimiser, counted from 0, before which the batch is drawn.
        count: most samples to draw.
        folder: as for the other pictures.
    """

    family = "batch_preview"
    step_order = 90  # behind teachers and pseudo-labellers: what the step gets

    def __init__(
        self, steps: Sequence[int] = (0, 1000, 10_000), count: int = 4, folder: str | None = None
    ) -> None:
        self.steps, self.count, self.folder = frozenset(steps), count, folder
        self._last = -1

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Draw the first micro-batch of a chosen step."""
        step = trainer.global_step
        if step not in self.steps or step == self._last:
            return
        self._last = step
        folder = output_folder(trainer, self.folder, "pictures")
        if has_readers(trainer, folder):
            publish(
                trainer,
                folder,
                "train/batch",
                preview(batch, getattr(trainer, "datamodule", None), self.count),
            )
