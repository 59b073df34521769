"""Run by tests/test_distillation.py in two gloo processes: targets from rows that are spread over ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from zoo.nn import Centre, sinkhorn_knopp

HEADS = (5, 8, 6)
ROWS = ((4, 3, 1), (2, 0, 5))


def rank_logits(rank: int) -> list[Tensor]:
    """Logits of three heads on one rank; rank 1 has the larger ones."""
    rng = torch.Generator().manual_seed(rank)
    return [0.2 * torch.randn(n, K, generator=rng) + rank for n, K in zip(ROWS[rank], HEADS, strict=True)]


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    logits = rank_logits(rank)
    centres = [Centre(K) for K in HEADS]
    for centre, rows in zip(centres, logits, strict=True):
        centre.update(rows)
    found = {"sinkhorn": sinkhorn_knopp(logits, 0.05), "centre": [centre.centre for centre in centres]}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
