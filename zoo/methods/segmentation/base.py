"""What every segmentation method shares: the network, the evaluation, prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor, nn

from callbacks import PredictionPanel
from zoo.method import Batch, Method
from zoo.metrics import SegmentationIoU
from zoo.nn import Segmentor, build_segmentor, pixel_cross_entropy
from zoo.optim import Optim


class SegmentationMethod(Method):
    """Base of the segmentation methods: a :class:`zoo.nn.Segmentor` as student, evaluated by mIoU.

    Args:
        backbone: a registered backbone or any timm model with feature maps, see ``zoo list backbones``.
        decode_head: name of a decode head in ``zoo.nn.heads``.
        num_classes: number of classes C; must be the benchmark's.
        pretrained: start the backbone from its ImageNet weights.
        backbone_args: further arguments of the backbone (``output_stride``, ``drop_path_rate``, ...).
        head_args: further arguments of the decode head.
        ignore_index: label of pixels that do not count.
        optim: see :class:`zoo.optim.Optim`.

    Logs ``val/mIoU`` (in percent, as the literature prints it) and ``val/iou_<class>``, likewise ``test/...``.
    """

    monitor = "val/mIoU"
    student: Segmentor

    def __init__(
        self,
        backbone: str = "pvt_v2_b5",
        decode_head: str = "fpn",
        num_classes: int = 19,
        pretrained: bool = False,
        backbone_args: dict[str, Any] | None = None,
        head_args: dict[str, Any] | None = None,
        ignore_index: int = 255,
        optim: Optim | None = None,
    ) -> None:
        super().__init__(optim)
        self.ignore_index = ignore_index
        self.student = build_segmentor(
            backbone,
            decode_head,
            num_classes,
            pretrained=pretrained,
            backbone_kwargs=backbone_args,
            head_kwargs=head_args,
        )
        self.num_classes = num_classes
        self.iou = SegmentationIoU(num_classes, ignore_index)
        self.class_names = [str(index) for index in range(num_classes)]

    def default_callbacks(self) -> list[Callback]:
        """A panel of predictions after each validation."""
        return [PredictionPanel()]

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``[B, C, H, W]`` of the evaluated network for images ``[B, 3, H, W]`` in [0, 1]."""
        return self.evaluated()(image)

    def evaluated(self) -> nn.Module:
        """The network that is evaluated and predicts: the student, where a paper does not say otherwise."""
        return self.student

    def cross_entropy(self, logits: Tensor, part: Batch) -> Tensor:
        """Cross-entropy of ``part["label"]``, weighted by its ``weight`` if it has one, over *all* pixels."""
        return pixel_cross_entropy(
            logits, part["label"], part.get("weight"), self.ignore_index, average="all"
        )

    # -- evaluation -------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take class names and the classes that count from the benchmark."""
        super().setup(stage)
        benchmark: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(benchmark, "eval_classes"):
            return
        if benchmark.num_classes != self.num_classes:
            raise MisconfigurationException(
                f"num_classes={self.num_classes}, but {type(benchmark).__name__} has {benchmark.num_classes} "
                f"classes: set model.num_classes to {benchmark.num_classes}"
            )
        self.class_names = list(benchmark.classes)
        self.iou.classes = list(benchmark.eval_classes)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accumulate the confusion matrix of one evaluation batch; labels may be larger than images."""
        logits, size = self(batch["image"]), batch["label"].shape[-2:]
        if logits.shape[-2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=self.student.align_corners)
        self.iou.update(logits.argmax(1), batch["label"])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Accumulate the confusion matrix of one test batch."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log mIoU and the IoU of every class."""
        self._log_iou("val")

    def on_test_epoch_end(self) -> None:
        """Log mIoU and the IoU of every class."""
        self._log_iou("test")

    def _log_iou(self, stage: str) -> None:
        result = self.iou.compute()
        self.iou.reset()
        # Ranks hold equal values, the metric has synchronised them; sync_dist only says so to Lightning.
        self.log(f"{stage}/mIoU", 100.0 * result["mIoU"], prog_bar=True, sync_dist=True)
        counted = self.iou.classes if self.iou.classes is not None else range(self.num_classes)
        per_class = {f"{stage}/iou_{self.class_names[c]}": 100.0 * result["iou"][c] for c in counted}
        self.log_dict(per_class, sync_dist=True)

    # -- prediction -------------------------------------------------------------------------------------

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Label map (uint8) and confidence ``[B, H, W]`` of one batch."""
        confidence, label = self(batch["image"]).softmax(1).max(1)
        return {"label": label.to(torch.uint8), "confidence": confidence, "name": batch.get("name")}

    @torch.no_grad()
    def predict(self, image: Image.Image | np.ndarray | Tensor) -> Tensor:
        """Segment one image.

        Args:
            image: PIL image; uint8 array ``[H, W, 3]``; uint8 tensor ``[3, H, W]`` or float tensor in [0, 1].

        Returns:
            Label map ``[H, W]``, int64, on the method's device.
        """
        if isinstance(image, Image.Image):
            image = np.asarray(image.convert("RGB"))
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"image has shape {tuple(image.shape)}: expected one RGB image, [3, H, W]")
        pixels = image.to(self.device).float() / 255 if image.dtype == torch.uint8 else image.to(self.device)
        network, training = self.evaluated(), self.training
        network.eval()
        label = network(pixels[None])[0].argmax(0)
        self.train(training)
        return label
