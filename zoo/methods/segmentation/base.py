"""What every segmentation method shares: the network, the evaluation, prediction."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from callbacks import PredictionPanel, WritePredictions, default_monitors
from zoo.method import Batch, Method
from zoo.metrics import SegmentationIoU, image_iou
from zoo.nn import Inference, Segmentor, build_segmentor, pixel_cross_entropy
from zoo.optim import Optim
from zoo.pictures import Picture, as_pixels, prepared


class SegmentationMethod(Method):
    """Base of the segmentation methods: a :class:`zoo.nn.Segmentor` as student, evaluated by mIoU.

    Args:
        backbone: a registered backbone or any timm model with feature maps, see ``zoo list backbones``.
        decode_head: name of a decode head in ``zoo.nn.heads``.
        num_classes: number of classes C; must be the benchmark's.
        pretrained: start the backbone from its ImageNet weights, or from other ones: a path,
            ``hf-hub:owner/name``, ``timm:name.tag`` or a URL, see :func:`zoo.checkpoints.load_pretrained`.
        backbone_args: further arguments of the backbone (``output_stride``, ``drop_path_rate``, ...).
        head_args: further arguments of the decode head.
        ignore_index: label of pixels that do not count.
        align_corners: of the upsampling of logits; the semi-supervised literature has it true.
        auxiliary_head: name of a further decode head (``fcn``) that is trained beside the main one and is not used
            otherwise.
        auxiliary_args: its further arguments (``source``: which of the backbone's maps it reads).
        auxiliary_weight: of its cross-entropy.
        inference: how whole images are predicted in validation, test and prediction: at once (the default), in
            windows, at several scales, mirrored; see :class:`zoo.nn.Inference`.
        optim: see :class:`zoo.optim.Optim`.
        init_from: see :class:`zoo.Method`.

    Logs ``val/mIoU`` (in percent, as the literature prints it), further means that the benchmark asks for
    (``val/mIoU13``) and ``val/iou_<class>``, likewise ``test/...``.
    """

    monitor = "val/mIoU"
    student: Segmentor

    def __init__(
        self,
        backbone: str = "mit_b5",
        decode_head: str = "fpn",
        num_classes: int = 19,
        pretrained: bool | str = False,
        backbone_args: dict[str, Any] | None = None,
        head_args: dict[str, Any] | None = None,
        ignore_index: int = 255,
        align_corners: bool = False,
        auxiliary_head: str | None = None,
        auxiliary_args: dict[str, Any] | None = None,
        auxiliary_weight: float = 0.4,
        inference: Inference | None = None,
        optim: Optim | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__(optim, init_from)
        # A checkpoint brings a dict.
        self.inference = Inference(**inference) if isinstance(inference, dict) else inference or Inference()
        self.ignore_index = ignore_index
        self.student = build_segmentor(
            backbone,
            decode_head,
            num_classes,
            pretrained=pretrained,
            backbone_kwargs=backbone_args,
            head_kwargs=head_args,
            align_corners=align_corners,
            auxiliary_head=auxiliary_head,
            auxiliary_kwargs=auxiliary_args,
        )
        self.has_auxiliary, self.auxiliary_weight = auxiliary_head is not None, auxiliary_weight
        self.num_classes = num_classes
        self.iou = SegmentationIoU(num_classes, ignore_index)
        self.class_names = [str(index) for index in range(num_classes)]
        self.subsets: dict[str, list[int]] = {}

    def default_callbacks(self) -> list[Callback]:
        """A panel of predictions after each validation, files of those of ``zoo predict``, and monitors."""
        return [PredictionPanel(), WritePredictions(), *default_monitors(self)]

    def forward(self, image: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Predict images ``[B, 3, H, W]`` in [0, 1] the way ``inference`` says.

        Returns:
            Logits ``[B, C, *size]`` of the evaluated network; without ``size``, at the images' own.
        """
        return self.inference(self.logits, image, size, self.student.align_corners)

    def logits(self, image: Tensor) -> Tensor:
        """Logits ``[B, C, h, w]`` of the evaluated network for one view ``[B, 3, h, w]``."""
        return self.evaluated()(image)

    def example_input(self, size: tuple[int, ...] | None = None) -> Tensor:
        """Images as :meth:`Deployable.example_input` makes them, by default of 512 x 512 where any size will do."""
        built_for = getattr(self.student.backbone, "img_size", None)
        return super().example_input(size or ((built_for,) * 2 if built_for else (512, 512)))

    def cross_entropy(self, logits: Tensor, part: Batch) -> Tensor:
        """Cross-entropy of ``part["label"]``, weighted by its ``weight`` if it has one, over *all* pixels."""
        return pixel_cross_entropy(
            logits, part["label"], part.get("weight"), self.ignore_index, average="all"
        )

    def auxiliary_losses(
        self, name: str, features: list[Tensor], part: Batch, weight: float = 1.0
    ) -> dict[str, Tensor]:
        """Cross-entropy of the auxiliary head, if there is one; it never sees pixel weights (as released)."""
        if not self.has_auxiliary:
            return {}
        logits = self.student.auxiliary(features, part["label"].shape[-2:])
        loss = self.cross_entropy(logits, {"label": part["label"]})
        return {f"{name}_auxiliary": weight * self.auxiliary_weight * loss}

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
        self.subsets = {
            name: list(classes) for name, classes in getattr(benchmark, "eval_subsets", {}).items()
        }

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accumulate the confusion matrix of one evaluation batch; labels may be larger than images."""
        logits = self(batch["image"], batch["label"].shape[-2:])
        self.iou.update(logits.argmax(1), batch["label"])

    def test_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Accumulate the confusion matrix of one test batch; returns ``scores``: each image's ``mIoU`` in percent."""
        label = batch["label"]
        prediction = self(batch["image"], label.shape[-2:]).argmax(1)
        self.iou.update(prediction, label)
        scores = image_iou(prediction, label, self.num_classes, self.ignore_index, self.iou.classes)
        return {"scores": {"mIoU": 100.0 * scores}}

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
        means = {f"{stage}/{name}": 100.0 * result["iou"][c].nanmean() for name, c in self.subsets.items()}
        self.log_dict(means, sync_dist=True)
        counted = self.iou.classes if self.iou.classes is not None else range(self.num_classes)
        per_class = {f"{stage}/iou_{self.class_names[c]}": 100.0 * result["iou"][c] for c in counted}
        self.log_dict(per_class, sync_dist=True)

    # -- prediction -------------------------------------------------------------------------------------

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Label map (uint8) and confidence ``[B, H, W]`` of one batch, at the images' stored size.

        Raises:
            ValueError: the images of the batch were stored at different sizes.
        """
        sizes = {tuple(size) for size in batch.get("size", ())}  # pinned memory holds lists for tuples
        if len(sizes) > 1:
            raise ValueError(
                f"One batch holds images stored at different sizes (height, width): {sorted(sizes)}. "
                "Set data.eval_batch_size: 1 for prediction."
            )
        confidence, label = self(batch["image"], next(iter(sizes), None)).softmax(1).max(1)
        return {"label": label.to(torch.uint8), "confidence": confidence, "name": batch.get("name")}

    @torch.no_grad()
    def predict(self, image: Picture) -> Tensor:
        """Segment one image, resized as those of the benchmark it was trained on.

        Args:
            image: PIL image; array ``[H, W, 3]`` or tensor ``[3, H, W]``, uint8 or float in [0, 1].

        Returns:
            Label map ``[H, W]``, int64, at the image's own size, on the method's device.
        """
        pixels = as_pixels(image)
        network, training = self.evaluated(), self.training
        network.eval()
        logits = self(prepared(pixels, self.preprocessing, self.device), tuple(pixels.shape[-2:]))
        self.train(training)
        return logits[0].argmax(0)
