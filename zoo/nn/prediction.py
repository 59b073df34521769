"""What logits say of every pixel or sample, each fact computed once and only where somebody asks."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor


class Prediction:
    """Label and confidence of logits ``[B, C, *]``; both come from one search for the largest logit.

    The softmax itself is never written: its largest entry is ``1 / sum_c exp(logit_c - largest)``.

    Args:
        logits: ``[B, C, *]``, of any floating-point type; taken as float32.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits.float()

    @cached_property
    def _largest(self) -> tuple[Tensor, Tensor]:
        values, classes = self.logits.max(1)
        return values, classes

    @property
    def score(self) -> Tensor:
        """The largest logit, ``[B, *]``."""
        return self._largest[0]

    @property
    def label(self) -> Tensor:
        """Its class, int64 ``[B, *]``."""
        return self._largest[1]

    @cached_property
    def confidence(self) -> Tensor:
        """The largest softmax probability, ``[B, *]``."""
        return (self.logits - self.score.unsqueeze(1)).exp_().sum(1).reciprocal_()
