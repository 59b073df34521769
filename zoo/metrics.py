"""Metrics that accumulate on the device and agree across ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


def image_iou(
    prediction: Tensor,
    label: Tensor,
    num_classes: int,
    ignore_index: int = 255,
    classes: Sequence[int] | None = None,
) -> Tensor:
    """Mean IoU of every image by itself, ``[B]`` in [0, 1]: over the classes in its truth or its prediction.

    Args:
        prediction: classes ``[B, H, W]``.
        label: classes or ``ignore_index``, ``[B, H, W]``.
        num_classes: C.
        ignore_index: label of pixels that do not count.
        classes: the classes in the mean; ``None``: all.
    """
    found = []
    for said, truth in zip(prediction, label, strict=True):
        counted = truth != ignore_index
        pairs = truth[counted].long() * num_classes + said[counted].long()
        confusion = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
        right = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - right
        iou = torch.where(union > 0, right / union.clamp(min=1), torch.nan)
        found.append((iou if classes is None else iou[list(classes)]).nanmean())
    return torch.stack(found)


class SegmentationIoU(Metric):
    """Intersection over union per class and its mean, from one confusion matrix over all images.

    ``compute`` returns ``iou`` ``[C]`` (NaN where a class occurs neither in truth nor in prediction) and
    ``mIoU``, the mean over the counted ``classes`` that occur. SYNTHIA's 16- and 13-class scores are this
    with the ``classes`` of the benchmark: the network keeps its 19 outputs, and predictions of an uncounted
    class are errors.

    Args:
        num_classes: number of classes C, at most 255.
        ignore_index: label of pixels that do not count, at most 255.
        classes: the classes in the mean; ``None``: all.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    confusion: Tensor
    unknown: Tensor

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        classes: Sequence[int] | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        if not (0 < num_classes <= 255 and 0 <= ignore_index <= 255):
            raise ValueError(
                "num_classes must be within [1, 255] and ignore_index within [0, 255], "
                f"got {num_classes} and {ignore_index}"
            )
        self.num_classes, self.ignore_index, self.classes = num_classes, ignore_index, classes
        self.add_state(
            "confusion", torch.zeros(num_classes, num_classes, dtype=torch.long), dist_reduce_fx="sum"
        )
        self.add_state("unknown", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count one batch.

        Args:
            prediction: classes ``[B, H, W]``, or logits ``[B, C, H, W]``.
            label: classes or ``ignore_index``, ``[B, H, W]``.

        Raises:
            ValueError: shapes differ, or a prediction is no class.
        """
        C = self.num_classes
        if prediction.dim() == label.dim() + 1:
            prediction = prediction.argmax(1)
        said = prediction.int()
        if said.numel() and said.max() >= C:
            raise ValueError(f"prediction holds class {int(said.max())}, but num_classes is {C}")
        if prediction.shape != label.shape:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in shape: "
                "bring predictions to the label's size"
            )
        # No masking: every label up to 255 has a row of its own, and those of the classes are cut out.
        pairs = torch.add(said, label.int(), alpha=C).flatten()
        counts = torch.bincount(pairs, minlength=256 * C)[: 256 * C].view(256, C)
        ignored = counts[self.ignore_index].sum()
        confusion = counts[:C].clone()
        if self.ignore_index < C:
            confusion[self.ignore_index] = 0
        self.confusion += confusion
        self.unknown += label.numel() - confusion.sum() - ignored

    def compute(self) -> dict[str, Tensor]:
        """Return ``mIoU`` (scalar) and ``iou`` ``[C]``, both in [0, 1].

        Raises:
            ValueError: some labels were neither a class nor ``ignore_index``.
        """
        if self.unknown:
            raise ValueError(
                f"{int(self.unknown)} labels are neither within [0, {self.num_classes}) nor ignore_index="
                f"{self.ignore_index}: map the raw label ids to training ids, or set num_classes"
            )
        intersection = self.confusion.diagonal()
        union = self.confusion.sum(0) + self.confusion.sum(1) - intersection
        iou = torch.where(union > 0, intersection / union.clamp(min=1), torch.nan)
        counted = iou if self.classes is None else iou[list(self.classes)]
        return {"mIoU": counted.nanmean(), "iou": iou}
