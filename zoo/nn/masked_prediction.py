"""Predicting what was masked: targets from the input itself, and losses over the masked tokens of each item."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Axis = Literal["predictions", "targets"]


def patches_of(image: Tensor, patch: tuple[int, int], stride: tuple[int, int] | None = None) -> Tensor:
    """Raw values of every patch, ``[B, N, C * rows * columns]`` of ``[B, C, H, W]``: channels, rows, then columns.

    Patches are counted row-major, as token backbones count them; what no whole patch covers is left out.
    """
    return F.unfold(image, patch, stride=stride or patch).transpose(1, 2)


def filled_in(image: Tensor, values: Tensor, mask: Tensor, patch: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """An image as it was seen, nan where patches were masked, and with predicted values there.

    Args:
        image: ``[B, C, H, W]``.
        values: of the M masked patches of every item, ``[B, M, C * rows * columns]``, in the order of positions.
        mask: which patches are masked, bool ``[B, N]``, M of every item.
        patch: rows and columns of a patch, without overlap.
    """
    hidden = mask[..., None].expand(-1, -1, values.shape[-1])
    patches = torch.zeros(hidden.shape, device=image.device).masked_scatter(hidden, values.float())
    size = (image.shape[-2], image.shape[-1])
    where, guess = (
        F.fold(part.transpose(1, 2), size, patch, stride=patch) for part in (hidden.float(), patches)
    )
    return image.masked_fill(where > 0, torch.nan), guess.where(where > 0, image)


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
