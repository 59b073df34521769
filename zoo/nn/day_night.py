"""Pseudo-labels of night images with the help of the same place by day: SePiCo's rules for Dark Zurich."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.nn.prediction import Prediction
from zoo.nn.weighting import ConfidenceShare

CITYSCAPES_FREQUENCIES = (
    0.36869696, 0.06084986, 0.22824049, 0.00655399, 0.00877272, 0.01227341, 0.00207795, 0.0055127, 0.15928651,
    0.01157818, 0.04018982, 0.01218957, 0.00135122, 0.06994545, 0.00267456, 0.00235192, 0.00232904, 0.00098658,
    0.00413907,
)  # fmt: skip
"""Share of each trainId among the pixels of Cityscapes, as released with SePiCo."""


@dataclass
class DayNight:
    """How a benchmark of night images with day partners is trained: SePiCo on Cityscapes → Dark Zurich.

    Args:
        frequencies: share of every class in the source, by whose rarity classes are weighted.
        static_classes: classes that stand where they stood by day.
        day_weight: weight of the day's probability of a static class where that is above ``day_threshold``;
            elsewhere it is ``1 - day_weight``.
        day_threshold: see there.
        train_scale: strength of the class weights in fused labels and cross-entropy.
        test_scale: the same in evaluation.
    """

    frequencies: tuple[float, ...] = CITYSCAPES_FREQUENCIES
    static_classes: tuple[int, ...] = (0, 1, 2, 3, 4, 8, 9, 10)
    day_weight: float = 0.8
    day_threshold: float = 0.4
    train_scale: float = 0.05
    test_scale: float = 0.16


def rarity_weights(frequencies: Sequence[float], scale: float) -> Tensor:
    """Class weights ``1 - scale * z`` with z the standardised logarithms of ``frequencies`` (as released)."""
    log = torch.tensor(frequencies, dtype=torch.float64).log()
    return ((log.mean() - log) / log.std() * scale + 1).float()


class DayNightFusion(nn.Module):
    """Scores of night images: static classes listen to the day image, rare classes count more.

    Args:
        rules: see :class:`DayNight`.
    """

    static: Tensor
    class_weight: Tensor

    def __init__(self, rules: DayNight) -> None:
        super().__init__()
        self.day_weight, self.day_threshold = rules.day_weight, rules.day_threshold
        static = torch.tensor([index in rules.static_classes for index in range(len(rules.frequencies))])
        weight = rarity_weights(rules.frequencies, rules.train_scale)
        self.register_buffer("static", static.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("class_weight", weight.view(1, -1, 1, 1), persistent=False)

    def forward(self, day: Tensor, night: Tensor) -> Tensor:
        """Probabilities ``[B, C, h, w]`` of both → scores of the same shape, which need not sum to 1."""
        listen = torch.where(day > self.day_threshold, self.day_weight, 1 - self.day_weight) * self.static
        return torch.lerp(night, day, listen) * self.class_weight


class ScoreShare(ConfidenceShare):
    """The confidence share where predictions are scores already: their maximum is the confidence."""

    def judge(self, prediction: Prediction, index: Tensor | None = None) -> Tensor:
        """Return the weight of every pixel for scores ``[B, C, *]``."""
        return self.share(prediction.score)
