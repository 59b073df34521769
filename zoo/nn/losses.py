"""Losses of segmentation self-training. None of them makes the host wait for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.nn.entropy import masked_percentile, prediction_entropy


def pixel_cross_entropy(
    logits: Tensor,
    label: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    average: Literal["all", "valid"] = "all",
) -> Tensor:
    """Cross-entropy per pixel, times ``weight``, averaged.

    ``average="all"`` divides by the number of all pixels, ignored ones included: DACS, DAFormer and FST, and
    with it a small share of labelled pixels stays a small loss. ``average="valid"`` divides by the pixels
    that are not ignored, as is usual in supervised training; the weight never enters the denominator.

    Args:
        logits: ``[B, C, *]``.
        label: int64 ``[B, *]``, classes or ``ignore_index``.
        weight: ``[B, *]`` or ``None`` for ones.
        ignore_index: label whose pixels have no loss.
        average: the denominator.

    Returns:
        A scalar; 0 with zero gradient where every pixel is ignored.
    """
    if average not in ("all", "valid"):
        raise ValueError(f"average must be 'all' or 'valid', got {average!r}")
    if weight is None:
        total = _cross_entropy(logits, label, ignore_index, "sum")
    else:
        total = (_cross_entropy(logits, label, ignore_index, "none") * weight).sum()
    if average == "all":
        return total / label.numel()
    return total / (label != ignore_index).sum().clamp(min=1)


def ohem_cross_entropy(
    logits: Tensor, label: Tensor, threshold: float = 0.7, min_kept: int = 100_000, ignore_index: int = 255
) -> Tensor:
    """Cross-entropy of the hard pixels only: online hard example mining as in U2PL and FST on Cityscapes.

    Kept are the pixels whose true-class probability is at most ``max(threshold, p_k)``, ``p_k`` the
    ``min_kept``-th smallest one. With fewer than ``min_kept`` valid pixels nothing is dropped.

    Args:
        logits: ``[B, C, *]``.
        label: int64 ``[B, *]``.
        threshold: true-class probability above which a pixel is easy.
        min_kept: number of pixels that are kept however easy they are.
        ignore_index: label whose pixels have no loss.

    Returns:
        The mean over the kept pixels, a scalar.
    """
    if min_kept < 1:
        raise ValueError(f"min_kept must be at least 1, got {min_kept}")
    loss = _cross_entropy(logits, label, ignore_index, "none")
    # Of the true class. An ignored pixel has loss 0, hence 1, so that with fewer than min_kept valid pixels the
    # min_kept-th smallest is 1 (or the largest of all) and nothing is dropped.
    probability = loss.detach().neg().exp()
    smallest = probability.flatten().kthvalue(min(min_kept, probability.numel())).values
    kept = (label != ignore_index) & (probability <= smallest.clamp(min=threshold))
    return (loss * kept).sum() / kept.sum().clamp(min=1)


def entropy_filtered_cross_entropy(
    logits: Tensor, teacher_logits: Tensor, label: Tensor, percent: float = 80.0, ignore_index: int = 255
) -> Tensor:
    """Cross-entropy on the pixels of which the teacher is sure, weighted up by how few they are.

    Pixels whose teacher entropy reaches the ``percent``-th percentile over all valid pixels are dropped (the
    maximum itself at 100, too); the loss is ``pixels / kept`` times the mean over the kept ones.
    Wang et al., "Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels" (CVPR 2022), section
    3.2 and its released code; FST uses it unchanged.

    Args:
        logits: student, ``[B, C, *]``.
        teacher_logits: ``[B, C, *]``; no gradient flows into them.
        label: pseudo-label, int64 ``[B, *]``.
        percent: share of the valid pixels that may be kept, in [0, 100].
        ignore_index: label whose pixels have no loss.

    Returns:
        A scalar; 0 with zero gradient where nothing is kept.
    """
    valid = label != ignore_index
    entropy = prediction_entropy(teacher_logits.detach())
    kept = valid & (entropy < masked_percentile(entropy, valid, percent))
    count = kept.sum().clamp(min=1)
    loss = (_cross_entropy(logits, label, ignore_index, "none") * kept).sum() / count
    return loss * (label.numel() / count)


def downscale_label(
    label: Tensor, factor: int, num_classes: int, min_ratio: float = 0.75, ignore_index: int = 255
) -> Tensor:
    """Majority label of ``factor × factor`` cells; cells without a clear majority are ignored.

    DAFormer (Hoyer et al., CVPR 2022), section 3.4. ``ignore_index`` competes as a class of its own, ties go
    to the lowest class, rows and columns that fill no whole cell are left out.

    Args:
        label: int64 ``[B, H, W]``, classes or ``ignore_index``.
        factor: side of a cell in pixels.
        num_classes: number of classes C.
        min_ratio: least share of a cell's pixels that the majority needs.
        ignore_index: label of pixels, and of the cells returned, that count for nothing.

    Returns:
        int64 ``[B, H // factor, W // factor]``.
    """
    B, height, width = label.shape
    H, W = height // factor, width // factor
    if min(factor, H, W) < 1:
        raise ValueError(
            f"factor must be within [1, image side], got {factor} for a label of {height}x{width}"
        )
    cells = label[:, : H * factor, : W * factor].reshape(B, H, factor, W, factor).transpose(2, 3).flatten(3)
    classes = cells.masked_fill(cells == ignore_index, num_classes)
    counts = torch.zeros(B, H, W, num_classes + 1, dtype=torch.int32, device=label.device)
    counts.scatter_add_(3, classes, torch.ones_like(classes, dtype=torch.int32))
    winner = counts.argmax(3, keepdim=True)
    unclear = (winner == num_classes) | (counts.gather(3, winner) / factor**2 < min_ratio)
    return winner.masked_fill(unclear, ignore_index).squeeze(3)


def label_of_cells(
    label: Tensor, features: Tensor, num_classes: int, min_ratio: float = 0.75, ignore_index: int = 255
) -> Tensor:
    """Label every cell of a feature map by :func:`downscale_label`.

    Args:
        label: int64 ``[B, H, W]``; the map's cells are ``W // w`` pixels wide.
        features: the map, ``[B, D, h, w]``.
        num_classes: number of classes C.
        min_ratio: least share of one class in a cell.
        ignore_index: label of pixels and cells that count for nothing.

    Returns:
        int64 ``[B, h, w]``.

    Raises:
        ValueError: the label does not divide into the cells of the map.
    """
    cells = downscale_label(
        label, label.shape[-1] // features.shape[-1], num_classes, min_ratio, ignore_index
    )
    if cells.shape[1:] != features.shape[2:]:
        raise ValueError(
            f"label of {tuple(label.shape[1:])} pixels divides into {tuple(cells.shape[1:])} cells, but "
            f"features have {tuple(features.shape[2:])}: use an image size that is a multiple of the stride"
        )
    return cells


def feature_distance(
    features: Tensor,
    reference: Tensor,
    label: Tensor,
    classes: Sequence[int],
    min_ratio: float = 0.75,
    num_classes: int = 19,
    ignore_index: int = 255,
) -> Tensor:
    """Mean L2 distance of features to those of a frozen network, over the cells of the given classes.

    The "thing-class ImageNet feature distance" of DAFormer (Hoyer et al., CVPR 2022), section 3.4, unweighted
    (there times 0.005).

    Args:
        features: student's map ``[B, D, h, w]``.
        reference: frozen network's map of the same shape; no gradient flows into it.
        label: int64 ``[B, H, W]``; its cells are ``W // w`` pixels wide.
        classes: classes that count.
        min_ratio: least share of one class in a cell, see :func:`downscale_label`.
        num_classes: number of classes.
        ignore_index: label of ignored pixels.

    Returns:
        A scalar; 0 with zero gradient where no cell is selected.

    Raises:
        ValueError: the maps differ in shape, or the label does not divide into their cells.
    """
    if features.shape != reference.shape:
        raise ValueError(
            f"features {tuple(features.shape)} and reference {tuple(reference.shape)} differ in shape"
        )
    cells = label_of_cells(label, features, num_classes, min_ratio, ignore_index)
    selected = torch.zeros_like(cells, dtype=torch.bool)
    for (
        index
    ) in classes:  # comparisons with Python numbers: a tensor of the classes would be a copy to the device
        selected |= cells == index
    distance = torch.linalg.vector_norm(features - reference.detach(), dim=1)
    return (distance * selected).sum() / selected.sum().clamp(min=1)


def _cross_entropy(
    logits: Tensor, label: Tensor, ignore_index: int, reduction: Literal["none", "sum"]
) -> Tensor:
    """``F.cross_entropy`` in float32, with a clear error for shapes and no copy of channels-last logits."""
    if logits.shape[:1] + logits.shape[2:] != label.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and label {tuple(label.shape)} do not fit: "
            "expected [B, C, *] and [B, *] at the same resolution"
        )
    logits = logits.float()
    if logits.dim() == 4 and logits.is_contiguous(memory_format=torch.channels_last):
        # One row per pixel is a view here, while the 4-d form would first copy everything to contiguous.
        rows = logits.permute(0, 2, 3, 1).flatten(0, 2)
        loss = F.cross_entropy(rows, label.flatten(), ignore_index=ignore_index, reduction=reduction)
        return loss.view(label.shape) if reduction == "none" else loss
    return F.cross_entropy(logits, label, ignore_index=ignore_index, reduction=reduction)
