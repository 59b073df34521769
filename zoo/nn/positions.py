"""Contextual position prediction: how crops of a volume overlap its base crops, and losses on guesses of that.

Wu, Zhuang and Chen, "VoCo" (CVPR 2024) and "Large-Scale 3D Medical Image Pre-training with Geometric Context
Priors" (TPAMI), as released. Boxes are ``(x0, y0, z0, x1, y1, z1)`` in voxels, the last three exclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6
Negatives = Literal["log", "squared"]


def base_boxes(crop: Sequence[int], grid: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Boxes of the base crops: the cells of a grid, the first axis slowest.

    Args:
        crop: sides of a cell in voxels.
        grid: cells along every axis.
        device: where the result lies.

    Returns:
        int64 ``[m, 6]``, ``m`` the number of cells.
    """
    steps = [torch.arange(cells, device=device) * side for cells, side in zip(grid, crop, strict=True)]
    start = torch.stack(torch.meshgrid(*steps, indexing="ij"), -1).flatten(0, 2)
    return torch.cat((start, start + torch.tensor(tuple(crop), device=device)), 1)


def overlap_labels(crop_box: Tensor, base_box: Tensor) -> Tensor:
    """Share of each base crop's volume that lies within each random crop.

    Overlaps are counted in integers, so that a label is 0 exactly where a crop does not touch a base: the losses
    tell positives from negatives by that.

    Args:
        crop_box: int64 ``[..., n, 6]``.
        base_box: int64 ``[..., m, 6]``.

    Returns:
        Float32 ``[..., n, m]`` within [0, 1]. Rows sum to 1 where base crops as large as the random ones cover the
        volume.
    """
    crop, base = crop_box[..., :, None, :], base_box[..., None, :, :]
    start, end = torch.maximum(crop[..., :3], base[..., :3]), torch.minimum(crop[..., 3:], base[..., 3:])
    overlap = (end - start).clamp(min=0).prod(-1)
    return overlap / (base[..., 3:] - base[..., :3]).prod(-1)


def similarity(crops: Tensor, bases: Tensor) -> Tensor:
    """ReLU of the cosine of every crop and base: ``[..., n, D]`` and ``[..., m, D]`` → float32 ``[..., n, m]``."""
    pairs = crops.float()[..., :, None, :], bases.float()[..., None, :, :]
    return F.cosine_similarity(*pairs, dim=-1, eps=1e-8).relu()


def position_loss(label: Tensor, prediction: Tensor, negatives: Negatives = "log") -> Tensor:
    """How far predicted overlaps are from the true ones, per volume.

    Positives, weighted by their label: ``sum y (-log(1 - |y - p| + eps)) / (sum y + eps)``. Negatives, where the
    label is 0: the mean of ``-log(1 - p + eps)`` (large-scale version) or of ``p²`` (conference version). Sums run
    over all crops and bases of a volume together. Half precision cannot hold eps: everything is float32.

    Args:
        label: overlaps ``[..., n, m]`` in [0, 1].
        prediction: similarities ``[..., n, m]`` in [0, 1].
        negatives: ``log`` or ``squared``.

    Returns:
        ``[...]``.
    """
    label, prediction = label.float(), prediction.float()
    negative = (label == 0).float()
    positives = -label * torch.log(1 - (label - prediction).abs() + EPS)
    punished = -torch.log(1 - prediction + EPS) if negatives == "log" else prediction.square()
    return _mean(positives, label) + _mean(negative * punished, negative)


def separation_loss(bases: Tensor) -> Tensor:
    """Mean squared similarity of different base crops of a volume: bases of different places should differ.

    Of each pair the later one is not trained, as released: the last base gets no gradient.

    Args:
        bases: embeddings ``[..., m, D]``, at least two bases.

    Returns:
        ``[...]``.
    """
    m = bases.shape[-2]
    squared = similarity(bases, bases.detach()).square()
    return squared.triu(diagonal=1).sum((-2, -1)) * (2 / (m * (m - 1)))


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return values.sum((-2, -1)) / (weight.sum((-2, -1)) + EPS)
