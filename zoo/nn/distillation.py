"""Losses of self-distillation: cross-view (DINO), masked patches (iBOT), spread of features (KoLeo).

Rows of views are view-major throughout: all images of view 1, then all of view 2, ...
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Numbers that a temporary of the cross-entropy may hold; larger logits are taken in pieces.
CHUNK = 2**24


def soft_cross_entropy(
    logits: Tensor, target: Tensor, temperature: float = 0.1, targets: int = 1, chunk: int = CHUNK
) -> Tensor:
    """Cross-entropy of ``softmax(logits / temperature)`` against distributions, row by row.

    ``targets * logsumexp(s) - <q, s>`` with ``s = logits / temperature``: a sum of two targets costs what one
    does. The gradient is written out, so that neither probabilities nor their logarithms are kept, and
    temporaries are bounded: rows are taken in pieces. Computed in float32; no gradient reaches ``target``.

    Args:
        logits: ``[..., n, K]``.
        target: ``[n, K]``, for all leading dimensions alike; rows sum to ``targets``.
        temperature: of the student.
        targets: how many distributions ``target`` is the sum of.
        chunk: numbers that a temporary may hold.

    Returns:
        Float32 ``[..., n]``.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if logits.shape[-2:] != target.shape:
        raise ValueError(
            f"logits {list(logits.shape)} and target {list(target.shape)} must agree in their last two "
            "dimensions: rows and prototypes"
        )
    views = logits.flatten(0, -3) if logits.dim() > 2 else logits[None]
    rows: Tensor = _SoftCrossEntropy.apply(views, target.detach(), temperature, targets, chunk)
    return rows.view(logits.shape[:-1])


class _SoftCrossEntropy(torch.autograd.Function):
    """Logits ``[V, n, K]`` against targets ``[n, K]`` → ``[V, n]``."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, temperature: float, targets: int, chunk: int
    ) -> Tensor:
        ctx.save_for_backward(logits, target)
        ctx.options = temperature, targets, chunk
        loss = torch.empty(logits.shape[:2], device=logits.device)
        for views, rows in _pieces(logits, chunk):
            scaled = logits[views, rows].float() / temperature
            match = torch.linalg.vecdot(target[rows].float(), scaled)
            loss[views, rows] = targets * scaled.logsumexp(-1) - match
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (logits, target), (temperature, targets, chunk) = ctx.saved_tensors, ctx.options
        result = torch.empty_like(logits)
        weight = (gradients[0] / temperature)[..., None]
        for views, rows in _pieces(logits, chunk):
            probability = (logits[views, rows].float() / temperature).softmax(-1)
            result[views, rows] = (
                probability.mul_(targets).sub_(target[rows]).mul_(weight[views, rows]).to(logits.dtype)
            )
        return result, None, None, None, None


def _pieces(logits: Tensor, chunk: int) -> list[tuple[slice, slice]]:
    """Cut ``[V, n, K]`` into (views, rows) of at most ``chunk`` numbers, at least one row, whole views if they fit."""
    V, n, K = logits.shape
    rows = max(1, min(n, chunk // max(K, 1)))
    views = max(1, chunk // max(rows * K, 1)) if rows == n else 1
    return [
        (slice(view, view + views), slice(first, first + rows))
        for view in range(0, V, views)
        for first in range(0, n, rows)
    ]


def cross_view_loss(
    target: Tensor, global_logits: Tensor, local_logits: Tensor | None = None, temperature: float = 0.1
) -> Tensor:
    """DINO: every view of the student matches the teacher's targets of the *other* global views.

    ``[ sum_{g' != g} CE(q_g, s_g') + sum_g sum_v CE(q_g, s_v) ] / (2 + 2V)``, each CE a mean over images.
    Caron et al., "Emerging properties in self-supervised vision transformers" (ICCV 2021), eq. 3.

    Args:
        target: distributions of the two global views, ``[2B, K]``.
        global_logits: of the student, same views and order.
        local_logits: of the student's V local views, ``[V * B, K]``, or nothing.
        temperature: of the student.

    Returns:
        A scalar.

    Raises:
        ValueError: numbers of rows that do not belong together.
    """
    B, odd = divmod(len(target), 2)
    if odd or len(global_logits) != 2 * B:
        raise ValueError(
            f"{len(target)} targets and {len(global_logits)} rows of global views: both must be 2B, two views"
        )
    first, second = target.view(2, B, -1)
    loss = 2.0 * soft_cross_entropy(global_logits, torch.cat((second, first)), temperature).mean()
    if local_logits is None or not len(local_logits):
        return loss / 2.0
    if len(local_logits) % B:
        raise ValueError(f"{len(local_logits)} rows of local views are no multiple of {B} images")
    views = local_logits.view(-1, B, local_logits.shape[-1])
    local = soft_cross_entropy(views, first + second, temperature, targets=2)
    return (loss + local.mean(1).sum()) / (2.0 + 2.0 * len(views))


def masked_patch_loss(
    target: Tensor, logits: Tensor, weight: Tensor, views: int, temperature: float = 0.1
) -> Tensor:
    """iBOT: masked patches match the teacher's targets of the same patches, which it sees.

    ``(1/2B) sum_i (1/|M_i|) sum_{n in M_i} CE(r_in, s_in)``: views without masked patches contribute 0 and
    count all the same. Zhou et al., "iBOT" (ICLR 2022), eq. 2 (mean over the views of an image and images).

    Args:
        target: distributions of the M masked patches, ``[M, K]``.
        logits: of the student, same patches.
        weight: 1 / (masked patches of the same view), ``[M]``, see :class:`zoo.nn.masking.Masks`.
        views: 2B.
        temperature: of the student.
    """
    return (soft_cross_entropy(logits, target, temperature) * weight).sum() / views


def koleo_loss(features: Tensor, eps: float = 1e-8) -> Tensor:
    """Spread unit vectors: minus the mean logarithm of the distance to the nearest other one.

    Sablayrolles et al., "Spreading vectors for similarity search" (ICLR 2019), as in DINOv2. Float32.

    Args:
        features: class tokens of one view, before the head, ``[B, D]``.
        eps: added to norms, to every component of the differences, and to distances.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(features) < 2:
        raise ValueError(
            f"KoLeo compares each image with its nearest neighbour and got {len(features)}: raise "
            "data.batch_size to at least 2 a device, or set model.koleo_weight to 0"
        )
    with torch.autocast(features.device.type, enabled=False):
        x = F.normalize(features.float(), dim=-1, eps=eps)
        with torch.no_grad():
            nearest = (x @ x.T).fill_diagonal_(-1.0).argmax(1)
        distance = F.pairwise_distance(x, x[nearest], eps=eps)
        return -(distance + eps).log().mean()
