"""Predicting what was masked: targets from the input itself, and losses over the masked tokens of each item."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Axis = Literal["predictions", "targets"]


def patches_of(image: Tensor, patch: Sequence[int], stride: Sequence[int] | None = None) -> Tensor:
    """Raw values of every patch, ``[B, N, C * values]`` of ``[B, C, *sides]``: channels, then the patch's axes.

    For any number of axes: sequences, images, spectrograms, volumes. Patches are counted with the last axis
    fastest, as token backbones count them; what no whole patch covers is left out.
    """
    for axis, (size, step) in enumerate(zip(patch, stride or patch, strict=True)):
        image = image.unfold(2 + axis, size, step)
    axes = len(patch)
    beside = image.permute(0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes))
    return beside.reshape(len(image), -1, math.prod(beside.shape[1 + axes :]))  # one copy


def image_of(patches: Tensor, patch: Sequence[int], grid: Sequence[int]) -> Tensor:
    """``[B, C, *sides]`` of patches that do not overlap, ``[B, N, C * values]``: the inverse of :func:`patches_of`."""
    axes = len(grid)
    laid_out = patches.unflatten(1, grid).unflatten(-1, (-1, *patch))
    beside = [place for axis in range(axes) for place in (1 + axis, 2 + axes + axis)]
    sides = [rows * size for rows, size in zip(grid, patch, strict=True)]
    return laid_out.permute(0, 1 + axes, *beside).reshape(len(patches), -1, *sides)


def standardised(values: Tensor, eps: float = 1e-6) -> Tensor:
    """Values ``[..., V]`` of each patch less their mean, over their standard deviation (unbiased) plus ``eps``."""
    centred = values - values.mean(-1, keepdim=True)
    # Of what is centred already: var() is five times slower on a CPU.
    deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / (values.shape[-1] - 1) ** 0.5
    return centred / (deviation + eps)


def filled_in(image: Tensor, values: Tensor, mask: Tensor, patch: Sequence[int]) -> tuple[Tensor, Tensor]:
    """An input as it was seen, nan where patches were masked, and with predicted values there.

    Args:
        image: ``[B, C, *sides]``, any number of axes.
        values: of the M masked patches of every item, ``[B, M, C * values]``, in the order of positions.
        mask: which patches are masked, bool ``[B, N]``, M of every item.
        patch: size of a patch along every axis, without overlap.
    """
    patches = patches_of(image, patch)
    hidden = mask[..., None].expand_as(patches)
    guess = patches.masked_scatter(hidden, values.to(patches.dtype))
    grid = [side // size for side, size in zip(image.shape[2:], patch, strict=True)]
    inside: tuple[Any, ...] = (..., *(slice(count * size) for count, size in zip(grid, patch, strict=True)))
    seen, filled = image.clone(), image.clone()  # what no whole patch covers stays
    seen[inside] = image_of(patches.masked_fill(hidden, torch.nan), patch, grid)
    filled[inside] = image_of(guess, patch, grid)
    return seen, filled


def match_scores(prediction: Tensor, target: Tensor) -> Tensor:
    """Scores ``S[b, j, i]`` of target j against prediction i, their inner product, in float32.

    Args:
        prediction: ``[B, M, D]``.
        target: ``[B, M, D]``, the j-th belongs to the j-th prediction.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        return torch.bmm(target.float(), prediction.float().transpose(1, 2))


def matching_loss(scores: Tensor, over: Axis = "predictions") -> Tensor:
    """InfoNCE within each item: ``-mean log softmax(S)[i, i]``.

    Args:
        scores: of :func:`match_scores`, ``[B, M, M]``.
        over: what competes. ``predictions`` of one target are normalised in SSAST's released code, ``targets``
            of one prediction in its paper (equation 1).
    """
    rows = scores if over == "predictions" else scores.transpose(1, 2)
    B, M, _ = rows.shape
    return F.cross_entropy(rows.reshape(B * M, M), torch.arange(M, device=rows.device).repeat(B))


def matching_accuracy(scores: Tensor, over: Axis = "predictions") -> Tensor:
    """Share of predictions whose own target has the largest probability among the targets; ``over`` as in the loss."""
    probability = scores.log_softmax(2 if over == "predictions" else 1)
    own = torch.arange(scores.shape[-1], device=scores.device)
    return (probability.argmax(1) == own).float().mean()
