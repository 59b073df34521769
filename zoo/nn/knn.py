"""Weighted k-nearest-neighbour classification of features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def knn_scores(
    query: Tensor,
    bank: Tensor,
    labels: Tensor,
    num_classes: int,
    k: Sequence[int],
    temperature: float = 0.07,
    chunk: int = 65536,
) -> dict[int, Tensor]:
    """Class scores by the nearest bank features under cosine similarity (Wu et al., CVPR 2018).

    A neighbour votes with ``softmax(similarity / temperature)`` over the ``max(k)`` nearest; for smaller k the
    same weights are cut off, so the order of the classes is that of ``exp(similarity / temperature)``.

    The bank is compared chunk by chunk: beside it no more than ``Q * (chunk + max(k))`` similarities are in
    memory.

    Args:
        query: features ``[Q, D]``, any scale.
        bank: features ``[N, D]``, any scale.
        labels: classes of the bank, int64 ``[N]`` within [0, num_classes).
        num_classes: number of classes C.
        k: numbers of neighbours.
        temperature: of the votes.
        chunk: bank features compared at once.

    Returns:
        For every k the scores ``[Q, C]``, float32.

    Raises:
        ValueError: k is larger than the bank or below 1.
    """
    check_k(k, len(bank))
    largest = max(k)
    query = F.normalize(query.float(), dim=1)
    similarity = query.new_empty(len(query), 0)
    neighbour = torch.empty(len(query), 0, dtype=torch.long, device=query.device)
    for start, part in zip(range(0, len(bank), chunk), bank.split(chunk), strict=True):
        near, place = (query @ F.normalize(part.float(), dim=1).T).topk(min(largest, len(part)), dim=1)
        candidates = torch.cat([similarity, near], 1)
        similarity, order = candidates.topk(min(largest, candidates.shape[1]), dim=1)
        neighbour = torch.cat([neighbour, place + start], 1).gather(1, order)
    weight = F.softmax(similarity / temperature, dim=1)
    classes = labels[neighbour]
    empty = query.new_zeros(len(query), num_classes)
    return {n: empty.scatter_add(1, classes[:, :n], weight[:, :n]) for n in k}


def check_k(k: Sequence[int], size: int) -> None:
    """Raise a ValueError unless every k lies within 1 and the ``size`` of the bank."""
    if wrong := [n for n in k if not 1 <= n <= size]:
        raise ValueError(
            f"k={max(wrong)}, but the bank holds {size} features: choose k between 1 and {size}, or a larger bank."
        )
