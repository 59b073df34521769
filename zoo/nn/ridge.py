"""Ridge regression in closed form: linear probes of few samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ALPHAS = (1e-10, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""Penalties among which the follow-up of the wearable-biosignal paper chooses."""


class Ridge(NamedTuple):
    """Predictions ``[M]`` and the penalty that was chosen."""

    prediction: Tensor
    alpha: float


def ridge_probe(features: Tensor, target: Tensor, unseen: Tensor, alphas: Sequence[float] = ALPHAS) -> Ridge:
    """Fit ``target`` linearly and predict it for unseen samples; the penalty has the least leave-one-out error.

    Features are standardised by the training ones; the intercept is not penalised. Float64, and exact: residuals of
    leaving one out follow from the diagonal of the hat matrix.

    Args:
        features: of training, ``[N, D]``.
        target: ``[N]``.
        unseen: features to predict for, ``[M, D]``.
        alphas: penalties on the squared norm of the weights.

    Raises:
        ValueError: fewer than three samples, or no penalty.
    """
    if len(features) < 3 or not alphas:
        raise ValueError(
            f"a ridge probe needs three samples and a penalty, got {len(features)} and {list(alphas)}"
        )
    x, y = features.double(), target.double()
    mean, spread = x.mean(0), x.std(0, correction=0)
    spread = torch.where(spread > 1e-12, spread, 1.0)
    x, centred = (x - mean) / spread, y - y.mean()
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    projected = u.T @ centred
    best: tuple[float, float, Tensor] | None = None
    for alpha in alphas:
        shrink = s.square() / (s.square() + alpha)
        residual = centred - u @ (shrink * projected)
        leverage = (u.square() @ shrink + 1 / len(y)).clamp(max=1 - 1e-9)
        error = float((residual / (1 - leverage)).square().mean())
        if best is None or error < best[0]:
            best = error, alpha, vt.T @ (s / (s.square() + alpha) * projected)
    assert best is not None
    _, alpha, weight = best
    return Ridge((unseen.double() - mean) / spread @ weight + y.mean(), alpha)
