"""How good frozen features are for segmentation: a linear classifier of every cell."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from callbacks.probe import Probe
from zoo.method import Batch, Method
from zoo.metrics import SegmentationIoU
from zoo.nn.ranks import mean_over_ranks


class DenseProbe(Probe):
    """mIoU of a 1×1 convolution on ``method.dense_features(image)``, in percent: ``val/dense_mIoU``.

    Batch norm and one linear layer, as in DINOv2's linear segmentation (Oquab et al., TMLR 2024), trained with
    Adam on the labelled part of the benchmark's training batches; logits are resized to the label (bilinear).

    Args:
        part: key of the labelled part of training batches (``source``, ``labelled``); None: batches are flat.
        steps: training steps.
        lr: learning rate, with a cosine to 0.
        every: run with every such validation.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, part: str | None = "labelled", steps: int = 500, lr: float = 1e-3, every: int = 1
    ) -> None:
        super().__init__(every)
        if steps < 1 or lr <= 0:
            raise ValueError(f"steps must be at least 1 and lr positive, got {steps} and {lr}.")
        self.part, self.steps, self.lr = part, steps, lr
        self._head: nn.Module | None = None
        self._iou: SegmentationIoU | None = None

    def begin(self, trainer: L.Trainer, method: Method) -> None:
        """Train the head.

        Raises:
            MisconfigurationException: the method has no dense features, or the benchmark no such labels.
        """
        if not hasattr(method, "dense_features"):
            raise MisconfigurationException(
                f"{type(method).__name__} has no dense_features(image) -> [B, D, h, w], which DenseProbe needs"
            )
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "eval_classes"):
            raise MisconfigurationException("DenseProbe needs a segmentation benchmark as data")
        with torch.inference_mode(False), torch.enable_grad():
            self._head = self._trained(trainer, method, data)
        self._iou = SegmentationIoU(data.num_classes, data.ignore_index, list(data.eval_classes)).to(
            method.device
        )

    def see(self, trainer: L.Trainer, method: Method, batch: Batch) -> None:
        """Count the pixels of one batch."""
        assert self._head is not None
        assert self._iou is not None
        logits = self._head(_dense(method, batch["image"]))
        self._iou.update(_at(logits, batch["label"]).argmax(1), batch["label"])

    def end(self, trainer: L.Trainer, method: Method) -> dict[str, Tensor]:
        """Mean IoU over the benchmark's classes."""
        assert self._iou is not None
        return {"dense_mIoU": 100.0 * self._iou.compute()["mIoU"]}

    def _trained(self, trainer: L.Trainer, method: Method, data: Any) -> nn.Module:
        head: nn.Sequential | None = None
        for batch in islice(self._batches(trainer, data), self.steps):
            features, label = _dense(method, batch["image"]), batch["label"]
            if head is None:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    D = features.shape[1]
                    head = nn.Sequential(nn.BatchNorm2d(D), nn.Conv2d(D, data.num_classes, 1)).to(
                        label.device
                    )
                optimizer = torch.optim.Adam(head.parameters(), lr=self.lr)
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
            logits = _at(head(features), label)
            loss = F.cross_entropy(logits, label, ignore_index=data.ignore_index, reduction="sum")
            optimizer.zero_grad(set_to_none=True)
            (loss / (label != data.ignore_index).sum().clamp(min=1)).backward()
            for parameter in head.parameters():
                assert parameter.grad is not None
                parameter.grad = mean_over_ranks(parameter.grad)
            optimizer.step()
            schedule.step()
        assert head is not None
        return head.eval()

    def _batches(self, trainer: L.Trainer, data: Any) -> Iterator[Batch]:
        """Labelled parts of training batches, without end."""
        if "train" not in data.datasets:  # a test opens evaluation images only
            data.setup("fit")
        loader = data.train_dataloader()
        for epoch in count():
            loader.sampler.set_epoch(epoch)
            for batch in loader:
                on_device = trainer.strategy.batch_to_device(batch)
                part = on_device if self.part is None else on_device.get(self.part, {})
                if "label" not in part:
                    raise MisconfigurationException(
                        f"DenseProbe(part={self.part!r}): training batches have no labels there, only "
                        f"{sorted(on_device)}: set part to the labelled one"
                    )
                yield part


def _dense(method: Method, image: Tensor) -> Tensor:
    with torch.no_grad(), method.forward_context():
        return method.dense_features(image).float()  # type: ignore[operator]


def _at(logits: Tensor, label: Tensor) -> Tensor:
    return F.interpolate(logits, label.shape[-2:], mode="bilinear", align_corners=False)
