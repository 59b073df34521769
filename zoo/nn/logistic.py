"""Logistic regression: linear probes of traits that are 0 or 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.extras import require
from zoo.nn.ridge import ALPHAS

FOLDS = 5


def logistic_probe(
    features: Tensor, target: Tensor, unseen: Tensor, alphas: Sequence[float] = ALPHAS
) -> Tensor:
    """Fit ``target`` by logistic regression (scikit-learn's), and predict it for unseen samples.

    Features are standardised by those it is fitted to; the intercept is not penalised. The penalty has the least
    log-loss in cross-validation of five folds, or as many as the rarer class has samples.

    Args:
        features: of training, ``[N, D]``.
        target: 0 or 1, ``[N]``.
        unseen: features to predict for, ``[M, D]``.
        alphas: penalties on half the squared norm of the weights.

    Returns:
        Log-odds of 1, float64 ``[M]``, where the features are.

    Raises:
        ValueError: another target, fewer than two samples of a class, or a penalty that is not positive.
        ImportError: scikit-learn is not installed.
    """
    zeros, ones = int((target == 0).sum()), int((target == 1).sum())
    if min(zeros, ones) < 2 or zeros + ones < len(target):
        raise ValueError(
            f"a logistic probe needs two samples of 0 and of 1 and no others, got {zeros} and {ones} of {len(target)}"
        )
    if not alphas or min(alphas) <= 0:
        raise ValueError(f"alphas={list(alphas)} must be positive penalties")
    linear: Any = require("sklearn.linear_model", "signals", "a logistic probe")
    selection: Any = require("sklearn.model_selection", "signals", "a logistic probe")
    pipeline: Any = require("sklearn.pipeline", "signals", "a logistic probe")
    scale: Any = require("sklearn.preprocessing", "signals", "a logistic probe")
    model = selection.GridSearchCV(
        pipeline.make_pipeline(scale.StandardScaler(), linear.LogisticRegression(max_iter=1000)),
        {"logisticregression__C": [1 / alpha for alpha in sorted(alphas, reverse=True)]},
        scoring="neg_log_loss",
        cv=selection.StratifiedKFold(min(FOLDS, zeros, ones)),
    )
    x, asked = (part.detach().double().cpu().numpy() for part in (features, unseen))
    model.fit(x, target.cpu().numpy().astype(int))
    return torch.from_numpy(model.decision_function(asked)).to(features.device)
