"""How well clips are tagged: mAP, d-prime, EER and accuracy, from the scores of all clips."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_eer
from torchmetrics.utilities.data import dim_zero_cat


class ClipScores(Metric):
    """Scores of clips against their classes, one or several per clip.

    ``compute`` returns scalars: ``mAP`` (mean average precision), ``EER`` (mean equal error rate) and
    ``accuracy`` (the highest score is that of the clip's class, or first class), in percent; ``dprime`` is
    ``sqrt(2) * Phi^-1`` of the mean area under the ROC curve. Means are over the classes that some clips have
    and some have not; NaN without any.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    scores: list[Tensor]
    targets: list[Tensor]

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Take in scores in [0, 1] and multi-hot classes, both ``[B, C]``.

        Raises:
            ValueError: shapes differ.
        """
        if scores.shape != targets.shape:
            raise ValueError(
                f"scores {list(scores.shape)} and labels {list(targets.shape)} differ: set model.num_classes "
                "to the benchmark's number of classes"
            )
        self.scores.append(scores.detach().float())
        self.targets.append(targets.bool())

    def compute(self) -> dict[str, Tensor]:
        """See the class."""
        scores, targets = dim_zero_cat(self.scores), dim_zero_cat(self.targets)
        counts = targets.sum(0)
        present = ((counts > 0) & (counts < len(targets))).nonzero().flatten().tolist()
        of_class: dict[str, Callable[..., Any]] = {
            "mAP": binary_average_precision,
            "auroc": binary_auroc,
            "EER": binary_eer,
        }
        means = {
            name: torch.stack([metric(scores[:, c], targets[:, c].int()) for c in present]).mean()
            if present
            else scores.new_tensor(torch.nan)
            for name, metric in of_class.items()
        }
        dprime = math.sqrt(2) * torch.special.ndtri(means.pop("auroc").double()).float()
        accuracy = (scores.argmax(1) == targets.int().argmax(1)).float().mean()
        return {
            **{name: 100 * value for name, value in means.items()},
            "accuracy": 100 * accuracy,
            "dprime": dprime,
        }
