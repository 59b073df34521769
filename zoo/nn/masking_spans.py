"""Masks of spans of steps, as in wav2vec 2.0 and w2v-BERT. Nothing here reads a value back from the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class SpanMasking:
    """Every step begins a masked span with probability ``probability``; spans overlap and end with the item.

    Away from the edges ``1 - (1 - probability) ** length`` of the steps are masked.

    Args:
        probability: that a step begins a span.
        length: of a span, in steps.
        least: spans that every item has at least, whatever was drawn; of items shorter than that, all steps.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(self, probability: float = 0.065, length: int = 10, least: int = 1) -> None:
        if not 0.0 <= probability <= 1.0 or length < 1 or least < 0:
            raise ValueError(
                f"mask probability={probability} must be within [0, 1], length={length} at least 1 and least={least} "
                "not negative"
            )
        self.probability, self.length, self.least = probability, length, least

    def __call__(self, valid: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw masks, bool ``[B, S]``.

        Args:
            valid: bool ``[B, S]``, False where a step is padding; padding is never masked.
            generator: of the draw.
        """
        draw = torch.rand(valid.shape, device=valid.device, generator=generator)
        draw = draw.masked_fill(~valid, 2.0)
        starts = draw < self.probability
        if self.least:
            least = draw.topk(min(self.least, valid.shape[1]), dim=1, largest=False).indices
            starts = starts.scatter(1, least, True) & valid
        reach = F.pad(starts[:, None].float(), (self.length - 1, 0))
        return (F.max_pool1d(reach, self.length, 1)[:, 0] > 0) & valid
