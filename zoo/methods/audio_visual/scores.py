"""What audio-visual emotion recognition is measured by: recall, accuracy and F1 of classes, agreement of numbers."""

from __future__ import annotations

from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassRecall
from torchmetrics.regression import ConcordanceCorrCoef, PearsonCorrCoef


def class_scores(num_classes: int) -> MetricCollection:
    """``UAR`` (mean recall of the classes), ``WAR`` (accuracy) and ``F1`` (weighted by how frequent classes are)."""
    return MetricCollection(
        {
            "UAR": MulticlassRecall(num_classes, average="macro"),
            "WAR": MulticlassAccuracy(num_classes, average="micro"),
            "F1": MulticlassF1Score(num_classes, average="weighted"),
        },
        compute_groups=False,
    )


def value_scores(num_values: int) -> MetricCollection:
    """``CCC`` (concordance) and ``PCC`` (correlation) of every number."""
    return MetricCollection(
        {"CCC": ConcordanceCorrCoef(num_values), "PCC": PearsonCorrCoef(num_values)}, compute_groups=False
    )
