"""How many directions a set of features uses, and how far they spread."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rankme(features: Tensor, epsilon: float = 1e-7) -> Tensor:
    """RankMe (Garrido et al., ICML 2023, Eq. 2): exponential of the entropy of the singular values.

    ``exp(-sum p log p)`` with ``p = s / sum(s) + epsilon`` and s the singular values of the features, which are
    not centred. The squares of the singular values are the eigenvalues of ``F^T F`` or of ``F F^T``; the smaller
    of the two is decomposed, in float64.

    Args:
        features: ``[N, D]``.
        epsilon: keeps the logarithm finite.

    Returns:
        Scalar between 1 and min(N, D), float64.
    """
    features = features.double()
    wide = features.shape[1] > features.shape[0]
    gram = features @ features.T if wide else features.T @ features
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = values / values.sum().clamp(min=epsilon) + epsilon
    return (-(share * share.log()).sum()).exp()


def effective_rank(features: Tensor) -> Tensor:
    """Exponential of the entropy of the centred features' standard deviations (Roy and Vetterli, EUSIPCO 2007).

    Unlike :func:`rankme` this ignores what all features share: 1 where they vary along one direction only.

    Args:
        features: ``[N, D]``, N at least 2.

    Returns:
        Scalar between 1 and min(N - 1, D), float64.
    """
    return rankme(features - features.mean(0))


def relative_spread(features: Tensor) -> Tensor:
    """Spread of normalised features relative to that of random directions: 0 collapsed, 1 uniform.

    The standard deviation of every dimension of the features on the unit sphere, averaged over dimensions,
    times ``sqrt(D)`` (Chen and He, "SimSiam", CVPR 2021, Sec. 4.1).

    Args:
        features: ``[N, D]``.

    Returns:
        Scalar, float32.
    """
    unit = F.normalize(features.float(), dim=1)
    return unit.std(0, correction=0).mean() * features.shape[1] ** 0.5
