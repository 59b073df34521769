"""The loss of volume segmentation: Dice and cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.extras import require
from zoo.nn.losses import pixel_cross_entropy


def dice_cross_entropy(
    logits: Tensor, label: Tensor, weight: Tensor | None = None, ignore_index: int = 255
) -> dict[str, Tensor]:
    """Soft Dice loss over the organs (MONAI's, per volume, background left out) and cross-entropy over all voxels.

    Args:
        logits: ``[B, C, X, Y, Z]``, class 0 is background.
        label: int64 ``[B, X, Y, Z]``, classes or ``ignore_index``.
        weight: of every voxel, ``[B, X, Y, Z]``; ``None`` for ones.
        ignore_index: label of voxels that do not count.

    Returns:
        ``dice`` and ``cross_entropy``; their plain sum is the loss of VoCo and of MONAI's ``DiceCELoss``.

    Raises:
        ImportError: MONAI is not installed.
        ValueError: logits and label do not fit.
    """
    cross_entropy = pixel_cross_entropy(logits, label, weight, ignore_index, average="valid")
    counts = label != ignore_index
    trusted = (counts if weight is None else counts * weight).to(torch.float32)[:, None]
    probability = logits.float().softmax(1) * trusted
    truth = torch.zeros_like(probability).scatter_(1, torch.where(counts, label, 0)[:, None], 1.0) * trusted
    dice = require("monai.losses", "medical", "dice_cross_entropy").DiceLoss(include_background=False)
    return {"dice": dice(probability, truth), "cross_entropy": cross_entropy}


def deep_dice_cross_entropy(
    logits: Sequence[Tensor], label: Tensor, ignore_index: int = 255
) -> dict[str, Tensor]:
    """The same over several scales, each weighing half as much as the finer one; weights sum to 1 (nnU-Net).

    Args:
        logits: ``[B, C, ...]`` each, the first at the label's size.
        label: int64 ``[B, X, Y, Z]``; coarser scales take its nearest voxels.
        ignore_index: label of voxels that do not count.
    """
    weights = [0.5**scale for scale in range(len(logits))]
    total: dict[str, Tensor] = {}
    for weight, scores in zip(weights, logits, strict=True):
        truth = label if scores.shape[2:] == label.shape[1:] else _nearest(label, scores)
        for name, loss in dice_cross_entropy(scores, truth, ignore_index=ignore_index).items():
            share = loss * (weight / sum(weights))
            total[name] = total[name] + share if name in total else share
    return total


def _nearest(label: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(label[:, None].float(), like.shape[2:], mode="nearest")[:, 0].long()
