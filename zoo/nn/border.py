"""Pseudo-labels at the border of an image are not trusted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.nn.prediction import Prediction
from zoo.nn.weighting import Weighting, weigh


class BorderMask(Weighting):
    """Any weighting of pseudo-labels, with weight 0 in strips along the image's border.

    DAFormer, FST and SePiCo distrust the top 15 rows of Cityscapes (rectification artefacts) and the bottom
    120 (the bonnet). What ``weight`` itself counts, such as a confident share, includes the strips, as
    released.

    Args:
        weight: a module of ``zoo.nn.weighting``.
        top: rows at the top.
        bottom: rows at the bottom.
        left: columns at the left.
        right: columns at the right.

    Raises:
        ValueError: a strip of negative width.
    """

    def __init__(
        self, weight: nn.Module, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0
    ) -> None:
        super().__init__()
        for side, width in (("top", top), ("bottom", bottom), ("left", left), ("right", right)):
            if width < 0:
                raise ValueError(f"the {side} border must not be negative, got {width} pixels")
        self.weight = weight
        self.top, self.bottom, self.left, self.right = top, bottom, left, right

    def judge(self, prediction: Prediction, index: Tensor | None = None) -> Tensor:
        """Return the weight ``[B, H, W]`` of every pixel."""
        weight = weigh(self.weight, prediction, index)
        height, width = weight.shape[-2:]
        kept = torch.zeros_like(weight)
        inside = (
            ...,
            slice(self.top, max(height - self.bottom, 0)),
            slice(self.left, max(width - self.right, 0)),
        )
        kept[inside] = weight[inside]
        return kept
