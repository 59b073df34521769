"""What methods that learn from pseudo-labels share: how far they are trusted, where, and how much they weigh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from lightning.pytorch.callbacks import Callback
from torch import nn

from callbacks import PseudoLabelMonitor
from zoo.methods.segmentation.base import SegmentationMethod
from zoo.nn import BorderMask, FixedThreshold, WeightSchedule, create_weighting, weight_schedule
from zoo.registry import UnknownNameError

Parts = Mapping[str, Callable[..., nn.Module]]


class PseudoLabelMethod(SegmentationMethod):
    """Base of the methods that learn from a teacher's labels: the ingredients every one of them can switch.

    Args:
        threshold: confidence from which a teacher's pixel counts as confident.
        weighting: how far pseudo-labels are trusted: the ``share`` of confident pixels (DACS), a ``threshold``
            (FixMatch), ``flexmatch``, ``freematch``, ``class_balanced``, ``entropy``, or all alike (``none``);
            see ``zoo.nn.weighting``.
        weighting_args: further arguments of the weighting (``portion``, ``momentum``, ``percent``, ...).
        ignore_top: rows at the top whose pseudo-labels get weight 0 (rectification border).
        ignore_bottom: rows at the bottom with weight 0 (the ego vehicle).
        ignore_left: columns at the left with weight 0.
        ignore_right: columns at the right with weight 0.
        mix_args: further arguments of the mixer (``p``, ``partner``, ``sigma``, ...), see ``zoo.nn.mixing``.
        supervised_weight: of the term of labelled images; a number, or a schedule over the optimiser steps, see
            :class:`zoo.nn.WeightSchedule`.
        unsupervised_weight: of the term of pseudo-labels, likewise.
        **kwargs: see :class:`SegmentationMethod`.
    """

    def __init__(
        self,
        threshold: float = 0.968,
        weighting: Literal[
            "share", "threshold", "flexmatch", "freematch", "class_balanced", "entropy", "none"
        ] = "share",
        weighting_args: dict[str, Any] | None = None,
        ignore_top: int = 0,
        ignore_bottom: int = 0,
        ignore_left: int = 0,
        ignore_right: int = 0,
        mix_args: dict[str, Any] | None = None,
        supervised_weight: WeightSchedule | float = 1.0,
        unsupervised_weight: WeightSchedule | float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.threshold, self.weighting, self.weighting_args = threshold, weighting, dict(weighting_args or {})
        self.border = ignore_top, ignore_bottom, ignore_left, ignore_right
        self.mix_args = dict(mix_args or {})
        self.supervised_weight = weight_schedule(supervised_weight)
        self.unsupervised_weight = weight_schedule(unsupervised_weight)

    def default_callbacks(self) -> list[Callback]:
        """Also watch the pseudo-labels."""
        return [*super().default_callbacks(), PseudoLabelMonitor()]

    def trust(self) -> nn.Module:
        """The weighting of pseudo-labels, with weight 0 at the border if there is one."""
        weight = self.pixel_weighting()
        return BorderMask(weight, *self.border) if any(self.border) else weight

    def pixel_weighting(self) -> nn.Module:
        """The weighting of pseudo-labels, by ``weighting``."""
        if self.weighting == "none":
            return FixedThreshold(0.0)
        return create_weighting(self.weighting, self.num_classes, self.threshold, self.weighting_args)

    def choose(self, argument: str, parts: Parts) -> Callable[..., nn.Module]:
        """The part that the value of a constructor ``argument`` names.

        Raises:
            UnknownNameError: there is no such part.
        """
        name = getattr(self, argument)
        if name not in parts:
            raise UnknownNameError(argument, name, parts, f"zoo fit --model.help {type(self).__name__}")
        return parts[name]
