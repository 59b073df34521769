"""Classification of volumes: fine-tuning of a pre-trained encoder, or training from scratch."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from callbacks import default_monitors
from zoo.method import Batch
from zoo.methods.medical.base import Volume, VolumeMethod
from zoo.nn.volume_networks import PooledClassifier
from zoo.optim import Optim
from zoo.registry import create_backbone


class VolumeClassifier(VolumeMethod):
    """A 3-D backbone, average pooling, one linear layer; cross-entropy.

    The downstream recipe of VoCo on CC-CCII. Batches hold ``volume`` ``[B, C_in, X, Y, Z]``, float in [0, 1], all of
    one size, and ``label``, int64 ``[B]``.

    Args:
        backbone: see :class:`zoo.methods.medical.voco.VoCo`.
        num_classes: classes C.
        pretrained: start the backbone from a source of weights, see :func:`zoo.checkpoints.load_pretrained`.
        backbone_args: further arguments of the backbone.
        in_chans: channels of the volumes; one-channel weights are shared among several.
        pool: what is averaged: the ``decoder``'s finest map, as released, or the ``encoder``'s embedding.
        optim: see :class:`zoo.optim.Optim`.
        init_from: see :class:`zoo.Method`.

    Logs ``val/accuracy`` in percent, likewise ``test/accuracy``.

    Raises:
        ValueError: an option out of range.
    """

    monitor = "val/accuracy"
    student: PooledClassifier

    def __init__(
        self,
        backbone: str = "swin_unetr_b",
        num_classes: int = 3,
        pretrained: bool | str = False,
        backbone_args: dict[str, Any] | None = None,
        in_chans: int = 1,
        pool: Literal["decoder", "encoder"] = "decoder",
        optim: Optim | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__(optim, init_from)
        if pool not in ("decoder", "encoder"):
            raise ValueError(f"pool={pool!r}: expected decoder or encoder")
        network = create_backbone(backbone, pretrained=pretrained, in_chans=in_chans, **(backbone_args or {}))
        self.student = PooledClassifier(network, num_classes, decoder=pool == "decoder")
        self.val_accuracy, self.test_accuracy = (
            MulticlassAccuracy(num_classes, average="micro") for _ in range(2)
        )

    def default_optim(self) -> Optim:
        """AdamW at 3e-4, 5 warm-up epochs, half a cosine to 0."""
        return Optim(
            "adamw",
            lr=3e-4,
            weight_decay=1e-5,
            schedule="warmup_cosine",
            warmup_epochs=5,
            warmup_ratio=0.0,
        )

    def default_callbacks(self) -> list[Callback]:
        """Monitors."""
        return default_monitors(self)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """One term, ``cross_entropy``."""
        return {"cross_entropy": F.cross_entropy(self(batch["volume"]).float(), batch["label"])}

    def forward(self, volume: Tensor) -> Tensor:
        """Logits ``[B, C]`` of volumes ``[B, C_in, X, Y, Z]`` in [0, 1]."""
        return self.student(volume)

    def deployed(self, network: nn.Module) -> nn.Module:
        """Logits of volumes."""
        return network

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch."""
        self.val_accuracy.update(self(batch["volume"]), batch["label"])

    def test_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Count one batch; returns ``scores``: 100 for every volume that is right, else 0."""
        logits = self(batch["volume"])
        self.test_accuracy.update(logits, batch["label"])
        return {"scores": {"accuracy": 100.0 * (logits.argmax(1) == batch["label"])}}

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy."""
        self._log_accuracy("val", self.val_accuracy)

    def on_test_epoch_end(self) -> None:
        """Log the accuracy."""
        self._log_accuracy("test", self.test_accuracy)

    def _log_accuracy(self, stage: str, accuracy: MulticlassAccuracy) -> None:
        self.log(f"{stage}/accuracy", 100.0 * accuracy.compute(), prog_bar=True, sync_dist=True)
        accuracy.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Class (int64) and its probability ``[B]`` of one batch."""
        confidence, label = self(batch["volume"]).float().softmax(1).max(1)
        kept = {key: value for key, value in batch.items() if key in ("name", "index")}
        return {"label": label, "confidence": confidence, **kept}

    @torch.no_grad()
    def predict(self, volume: Volume, affine: np.ndarray | Tensor | None = None) -> int:
        """The class of one volume; for the arguments see :meth:`prepared`."""
        training = self.student.training
        self.student.eval()
        label = int(self(self.prepared(volume, affine)[0]).argmax(1))
        self.student.train(training)
        return label
