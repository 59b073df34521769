"""Segmentation of volumes: fine-tuning of a pre-trained encoder, or training from scratch."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from callbacks import VolumePanel, default_monitors
from zoo.method import Batch
from zoo.methods.medical.base import Volume, VolumeMethod
from zoo.nn.volume_inference import SlidingWindow
from zoo.nn.volume_losses import deep_dice_cross_entropy
from zoo.nn.volume_networks import VolumeSegmentor
from zoo.optim import Optim
from zoo.registry import create_backbone
from zoo.volume_metrics import VolumeScores, volume_dice


class VolumeSegmenter(VolumeMethod):
    """Swin UNETR, or any 3-D backbone under the UNETR decoder, trained with Dice and cross-entropy.

    The downstream recipe of VoCo. Training batches hold ``volume`` ``[B, C_in, x, y, z]``, float in [0, 1] (crops),
    and ``label``, int64 ``[B, x, y, z]``; evaluation batches hold whole volumes, of any size, and ``spacing``
    ``[B, 3]`` in millimetres. Whole volumes are predicted in overlapping windows and scored on the grid they come in.

    Args:
        backbone: see :class:`zoo.methods.medical.voco.VoCo`.
        num_classes: classes C, background included.
        pretrained: start the backbone from a source of weights, see :func:`zoo.checkpoints.load_pretrained`.
        backbone_args: further arguments of the backbone.
        in_chans: channels of the volumes; one-channel weights are shared among several.
        deep_supervision: so many coarser decoder maps have a loss of their own, each weighing half as much as the
            finer one.
        inference: how whole volumes are predicted, see :class:`zoo.nn.SlidingWindow`.
        hausdorff: when 95 % Hausdorff distances are measured, which takes long: ``never``, in ``test``, or ``always``.
        ignore_index: label of voxels that do not count in training.
        optim: see :class:`zoo.optim.Optim`.
        init_from: see :class:`zoo.Method`; takes files with a decoder, too (VoComni).

    Logs ``val/dice`` (in percent: mean over volumes of the mean over their organs, background left out),
    ``val/dice_<organ>``, and with distances ``val/hd95`` and ``val/hd95_<organ>`` (millimetres); likewise ``test/``.

    Raises:
        ValueError: an option out of range.
    """

    monitor = "val/dice"
    student: VolumeSegmentor

    def __init__(
        self,
        backbone: str = "swin_unetr_b",
        num_classes: int = 14,
        pretrained: bool | str = False,
        backbone_args: dict[str, Any] | None = None,
        in_chans: int = 1,
        deep_supervision: int = 0,
        inference: SlidingWindow | None = None,
        hausdorff: Literal["never", "test", "always"] = "test",
        ignore_index: int = 255,
        optim: Optim | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__(optim, init_from)
        if hausdorff not in ("never", "test", "always"):
            raise ValueError(f"hausdorff={hausdorff!r}: expected one of never, test, always")
        # A checkpoint brings a dict.
        self.inference = (
            SlidingWindow(**inference) if isinstance(inference, dict) else inference or SlidingWindow()
        )
        self.num_classes, self.ignore_index = num_classes, ignore_index
        network = create_backbone(backbone, pretrained=pretrained, in_chans=in_chans, **(backbone_args or {}))
        self.student = VolumeSegmentor(network, num_classes, deep_supervision)
        self.class_names = [str(index) for index in range(num_classes)]
        self.val_scores = VolumeScores(num_classes, hausdorff == "always")
        self.test_scores = VolumeScores(num_classes, hausdorff != "never")

    def default_optim(self) -> Optim:
        """AdamW at 3e-4, 20 warm-up epochs, half a cosine to 0."""
        return Optim(
            "adamw",
            lr=3e-4,
            weight_decay=1e-5,
            schedule="warmup_cosine",
            warmup_epochs=20,
            warmup_ratio=0.0,
        )

    def default_callbacks(self) -> list[Callback]:
        """Slices of one volume with truth and prediction after each validation, and monitors."""
        return [VolumePanel(count=1), *default_monitors(self)]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``dice`` and ``cross_entropy``."""
        logits = self.student.forward_deep(batch["volume"])
        return deep_dice_cross_entropy(logits, batch["label"], self.ignore_index)

    def forward(self, volume: Tensor) -> Tensor:
        """Logits ``[B, C, X, Y, Z]`` of whole volumes ``[B, C_in, X, Y, Z]`` in [0, 1], predicted in windows."""
        return self.inference(self.student, volume)

    def deployed(self, network: nn.Module) -> nn.Module:
        """Logits of one window."""
        return network

    # -- evaluation -------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take class names from the benchmark.

        Raises:
            MisconfigurationException: the benchmark has another number of classes.
        """
        super().setup(stage)
        benchmark: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(benchmark, "num_classes"):
            return
        if benchmark.num_classes != self.num_classes:
            raise MisconfigurationException(
                f"num_classes={self.num_classes}, but {type(benchmark).__name__} has {benchmark.num_classes} "
                f"classes: set model.num_classes to {benchmark.num_classes}"
            )
        self.class_names = list(benchmark.classes)

    def validation_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Score one batch of whole volumes and return its label maps, for pictures."""
        return self._score(self.val_scores, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Score one batch of whole volumes; returns its label maps, and ``scores``: each one's ``dice`` in percent."""
        result = self._score(self.test_scores, batch)
        dice = volume_dice(result["label"].to(batch["label"].device), batch["label"], self.num_classes)
        return {**result, "scores": {"dice": 100.0 * dice}}

    def _score(self, scores: VolumeScores, batch: Batch) -> Batch:
        prediction, label = self(batch["volume"]).argmax(1), batch["label"]
        scores.update(prediction.to(label.device), label, batch.get("spacing"))
        return {"label": prediction}

    def on_validation_epoch_end(self) -> None:
        """Log the scores of all volumes."""
        self._log_scores("val", self.val_scores)

    def on_test_epoch_end(self) -> None:
        """Log the scores of all volumes."""
        self._log_scores("test", self.test_scores)

    def _log_scores(self, stage: str, scores: VolumeScores) -> None:
        result = scores.compute()
        scores.reset()
        # Ranks hold equal values, the metric has synchronised them; sync_dist only says so to Lightning.
        self.log(f"{stage}/dice", 100.0 * result["dice"].float(), prog_bar=True, sync_dist=True)
        values = self._by_organ(f"{stage}/dice", 100.0 * result["organ_dice"])
        if "hd95" in result:
            values |= {f"{stage}/hd95": result["hd95"].float()}
            values |= self._by_organ(f"{stage}/hd95", result["organ_hd95"])
        self.log_dict(values, sync_dist=True)

    def _by_organ(self, name: str, values: Tensor) -> dict[str, Tensor]:
        """Values of the organs under their names; torchmetrics makes a scalar of a single one."""
        organs = self.class_names[1:]
        return {f"{name}_{o}": v for o, v in zip(organs, values.float().view(-1), strict=True)}

    # -- prediction -------------------------------------------------------------------------------------

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Label maps ``[B, X, Y, Z]`` (uint8) on the volumes' grid, and what a writer needs to put them back."""
        label = self(batch["volume"]).argmax(1).to(torch.uint8)
        kept = {k: v for k, v in batch.items() if k in ("name", "index", "affine", "spacing")}
        return {"label": label, **kept}

    @torch.no_grad()
    def predict(self, volume: Volume, affine: np.ndarray | Tensor | None = None) -> Tensor:
        """Segment one volume.

        Args:
            volume: a file, or an array or tensor ``[X, Y, Z]`` or ``[C_in, X, Y, Z]``, see :meth:`prepared`.
            affine: of a raw scan.

        Returns:
            Label map ``[X, Y, Z]``, int64, on the grid of what was given.
        """
        training = self.student.training
        self.student.eval()
        batch, done = self.prepared(volume, affine)
        label = self(batch)[0].argmax(0)
        self.student.train(training)
        if done is None:
            return label
        from datamodules.volume_processing import to_original_space

        grid = done.affine, done.original_size, done.original_affine
        return torch.from_numpy(to_original_space(label.cpu().numpy(), *grid)).to(self.device)
