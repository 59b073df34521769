"""Dice and 95 % Hausdorff distance of organs, through MONAI, accumulated over volumes and ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from zoo.extras import require


def volume_dice(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Mean Dice over the organs that are there, of every volume by itself: ``[B]`` in [0, 1], NaN without organs.

    Args:
        prediction: classes ``[B, X, Y, Z]``.
        label: classes ``[B, X, Y, Z]``; class 0 is background.
        num_classes: C.
    """
    found = []
    for said, truth in zip(prediction.flatten(1).long(), label.flatten(1).long(), strict=True):
        inside = truth < num_classes
        pairs = truth[inside] * num_classes + said[inside]
        confusion = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
        there = confusion.sum(1)[1:]
        both = 2 * confusion.diagonal()[1:]
        dice = both / (there + confusion.sum(0)[1:]).clamp(min=1)
        found.append(torch.where(there > 0, dice, torch.nan).nanmean())
    return torch.stack(found)


class VolumeScores(Metric):
    """Scores of the organs (classes 1 to C - 1), per volume first, then averaged over volumes.

    Rule for what is not there: an organ that a volume's truth lacks does not count in that volume. One that is there
    and was not found has Dice 0; distances are averaged where organ and prediction are both there.

    Args:
        num_classes: classes C, background included.
        hausdorff: whether distances are measured; it takes seconds per organ.

    Raises:
        ValueError: fewer than two classes.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    dice_sum: Tensor
    dice_count: Tensor
    distance_sum: Tensor
    distance_count: Tensor
    volume_sum: Tensor
    volume_count: Tensor

    def __init__(self, num_classes: int, hausdorff: bool = False, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if num_classes < 2:
            raise ValueError(f"num_classes counts the background: at least 2, got {num_classes}")
        self.num_classes, self.hausdorff = num_classes, hausdorff
        for name in ("dice_sum", "dice_count", "distance_sum", "distance_count"):
            self.add_state(name, torch.zeros(num_classes - 1, dtype=torch.double), dist_reduce_fx="sum")
        for name in ("volume_sum", "volume_count"):
            self.add_state(name, torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor, spacing: Tensor | None = None) -> None:
        """Score a batch.

        Args:
            prediction: classes ``[B, X, Y, Z]``.
            label: classes ``[B, X, Y, Z]``.
            spacing: millimetres per voxel ``[B, 3]``; without, distances are in voxels.

        Raises:
            ImportError: MONAI is not installed.
            ValueError: shapes differ, or the label holds a number that is no class.
        """
        if prediction.shape != label.shape:
            raise ValueError(
                f"prediction {list(prediction.shape)} and label {list(label.shape)} differ: score both on one grid"
            )
        if label.numel() and int(label.max()) >= self.num_classes:
            raise ValueError(f"label holds class {int(label.max())}, but num_classes is {self.num_classes}")
        metrics = require("monai.metrics", "medical", "VolumeScores")
        dice = torch.full((len(label), self.num_classes - 1), torch.nan, device=label.device)
        for c in range(1, self.num_classes):
            found, truth = (prediction == c)[:, None], (label == c)[:, None]
            dice[:, c - 1] = metrics.compute_dice(found.float(), truth.float())[:, 0]
            if self.hausdorff:
                self._add_distances(metrics, found, truth, spacing, c - 1)
        there = ~dice.isnan()
        self.dice_sum += dice.nansum(0)
        self.dice_count += there.sum(0)
        self.volume_sum += dice.nanmean(1).nansum()
        self.volume_count += there.any(1).sum()

    def _add_distances(
        self, metrics: object, found: Tensor, truth: Tensor, spacing: Tensor | None, organ: int
    ) -> None:
        distance = metrics.compute_hausdorff_distance  # type: ignore[attr-defined]
        for i, pair in enumerate(zip(found.split(1), truth.split(1), strict=True)):
            if all(bool(mask.any()) for mask in pair):
                millimetres = None if spacing is None else spacing[i].tolist()
                value = distance(*pair, include_background=True, percentile=95, spacing=millimetres)
                self.distance_sum[organ] += value.item()
                self.distance_count[organ] += 1

    def compute(self) -> dict[str, Tensor]:
        """Return the scores so far; NaN where nothing was scored.

        Returns:
            ``dice``, the mean over volumes of the mean over their organs, and ``organ_dice`` ``[C - 1]``, in [0, 1];
            with distances also ``hd95``, the mean over organs, and ``organ_hd95`` ``[C - 1]``.
        """
        organ = self.dice_sum / self.dice_count
        scores = {"dice": self.volume_sum / self.volume_count, "organ_dice": organ}
        if self.hausdorff:
            scores["organ_hd95"] = self.distance_sum / self.distance_count
            scores["hd95"] = scores["organ_hd95"].nanmean()
        return scores
