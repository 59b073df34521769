"""Telling the code of a masked step from those of others of the same utterance (wav2vec 2.0, equation 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class StepScores(NamedTuple):
    """Logits of every step's own code and its distractors.

    Attributes:
        logits: ``[B, S, 1 + K]``, the own code first; -inf where a distractor is the same code.
        counts: bool ``[B, S]``, masked steps with at least one other to choose from.
    """

    logits: Tensor
    counts: Tensor


def draw_distractors(mask: Tensor, number: int, generator: torch.Generator | None = None) -> Tensor:
    """Positions of ``number`` other masked steps of the same item, uniform, with replacement: int64 ``[B, S, K]``.

    For steps that are not masked, and items with one masked step, the result means nothing.

    Args:
        mask: bool ``[B, S]``.
        number: K.
        generator: of the draw.
    """
    rank = mask.cumsum(1) - 1  # of every masked step among those of its item
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)  # positions of masked steps come first
    others = (mask.sum(1) - 1).clamp(min=1)
    uniform = torch.rand(*mask.shape, number, device=mask.device, generator=generator)
    drawn = (uniform * others[:, None, None]).long().clamp(max=mask.shape[1] - 1)
    drawn = (drawn + (drawn >= rank[..., None])).clamp(max=mask.shape[1] - 1)  # past the step itself
    return order.gather(1, drawn.flatten(1)).view_as(drawn)


def step_scores(
    context: Tensor, codes: Tensor, chosen: Tensor, mask: Tensor, distractors: Tensor, temperature: float
) -> StepScores:
    """Cosine similarities over ``temperature``, in float32.

    Args:
        context: ``[B, S, D]``, what the network says of every step.
        codes: ``[B, S, D]``, quantised vectors.
        chosen: int64 ``[B, S, G]``, which entries they are.
        mask: bool ``[B, S]``.
        distractors: of :func:`draw_distractors`, ``[B, S, K]``.
        temperature: kappa.
    """
    with torch.autocast(context.device.type, enabled=False):
        every = torch.bmm(
            F.normalize(context.float(), dim=-1), F.normalize(codes.float(), dim=-1).transpose(1, 2)
        )
    own = every.diagonal(dim1=1, dim2=2)[..., None]
    others = every.gather(2, distractors)
    entry = chosen[:, None].expand(-1, distractors.shape[1], -1, -1)
    at = distractors[..., None].expand(*distractors.shape, chosen.shape[-1])
    same = (entry.gather(2, at) == chosen[:, :, None]).all(-1)
    logits = torch.cat((own, others.masked_fill(same, -torch.inf)), -1) / temperature
    return StepScores(logits, mask & (mask.sum(1, keepdim=True) > 1))


def mean_over_steps(values: Tensor, counts: Tensor, per_item: bool = False) -> Tensor:
    """Mean of ``[B, S]`` over the steps that count: of the batch, or of every item and then of items that have any."""
    counted = counts.to(values.dtype)
    if not per_item:
        return (values * counted).sum() / counted.sum().clamp(min=1)
    steps = counted.sum(1)
    means = (values * counted).sum(1) / steps.clamp(min=1)
    return means.sum() / (steps > 0).sum().clamp(min=1)
