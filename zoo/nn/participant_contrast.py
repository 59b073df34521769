"""Contrast of participants: InfoNCE on two segments of each person (Abbaspourazad et al., ICLR 2024)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Negatives = Literal["both", "cross"]


def participant_info_nce(
    first: Tensor,
    second: Tensor,
    participant: Tensor | None = None,
    temperature: float = 0.04,
    negatives: Negatives = "both",
) -> Tensor:
    """InfoNCE of rows that belong together, both ways, as a difference of log-sum-exps, in float32.

    For row i of ``first``: its positive is row i of ``second``; the denominator holds every row of ``second`` and,
    with ``both`` (as released), the rows of ``first`` that are of *another* participant. Rows of the same participant
    therefore are no negatives within a view, but remain ones across views. ``cross`` has the rows of ``second`` alone
    (the formula of the paper). Exponentials of similarities over 0.04 reach 7e10, which half precision does not hold.

    Args:
        first: embeddings of one view, ``[B, D]``; normalised here.
        second: those of the other.
        participant: whose row it is, ``[B]``; None: all rows are of different people.
        temperature: divides cosine similarities.
        negatives: ``both`` views', or ``cross``.

    Returns:
        Mean over rows and both directions.

    Raises:
        ValueError: the shapes differ, or an option is unknown.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            f"first {list(first.shape)} and second {list(second.shape)} must both be [B, D], row by row one person's"
        )
    if negatives not in ("both", "cross"):
        raise ValueError(f"negatives={negatives!r}: expected both or cross")
    with torch.autocast(first.device.type, enabled=False):
        a, b = (F.normalize(view.float(), dim=1) for view in (first, second))
        cross = a @ b.T / temperature
        if participant is None:
            participant = torch.arange(len(a), device=a.device)
        same = participant[:, None] == participant[None]
        losses = []
        for view, scores in ((a, cross), (b, cross.T)):
            if negatives == "both":
                within = (view @ view.T / temperature).masked_fill(same, float("-inf"))
                scores = torch.cat([scores, within], 1)
            losses.append((scores.logsumexp(1) - cross.diagonal()).mean())
        return 0.5 * (losses[0] + losses[1])
