"""How teacher logits become targets: centring, or Sinkhorn-Knopp; both over all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.nn.ranks import max_over_ranks, sum_over_ranks


class Centre(nn.Module):
    """Targets ``softmax((o - c) / temperature)``, c a running mean of what the teacher said before.

    Caron et al., DINO (ICCV 2021), eq. 4. The centre of step t is that of the steps before: take the targets
    first, then :meth:`update`.

    Args:
        prototypes: K.
        momentum: share of the centre that stays at each update.
    """

    centre: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(1, prototypes))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Logits ``[n, K]`` → distributions ``[n, K]``, float32."""
        return ((logits.float() - self.centre) / temperature).softmax(-1)

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Move towards the mean of ``[n, K]``; n may differ between ranks, and may be 0 on any."""
        total = torch.cat((logits.float().sum(0), logits.new_full((1,), len(logits), dtype=torch.float32)))
        total = sum_over_ranks(total)
        mean, count = total[:-1] / total[-1].clamp(min=1.0), total[-1]
        self.centre.lerp_(torch.where(count > 0, mean, self.centre), 1.0 - self.momentum)


class Sinkhorn(nn.Module):
    """Targets by :func:`sinkhorn_knopp`; in the place of a :class:`Centre`, but without memory.

    Args:
        iterations: how often columns and rows are normalised.
    """

    def __init__(self, iterations: int = 3) -> None:
        super().__init__()
        self.iterations = iterations

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Logits ``[n, K]`` → distributions ``[n, K]``, float32."""
        return sinkhorn_knopp([logits], temperature, self.iterations)[0]

    def update(self, logits: Tensor) -> None:
        """There is nothing to remember."""


@torch.no_grad()
def sinkhorn_knopp(logits: Sequence[Tensor], temperature: float, iterations: int = 3) -> list[Tensor]:
    """Balance assignments of rows to prototypes: rows sum to 1, columns approximately alike.

    ``Q = exp(o / temperature)``, then ``iterations`` times: divide columns by K times their sums over all ranks,
    rows by M times their sums. Cuturi (NeurIPS 2013) as in SwAV, DINOv2 and POA. The number of rows M cancels and
    is not needed.

    Only the two scaling vectors are iterated, Q is computed once. Column maxima over all ranks, then
    row maxima, are taken out of the exponents and handed to the vectors, which changes nothing but the range: no
    finite logits overflow or divide by zero.

    Args:
        logits: problems of their own (heads; class and patch tokens), ``[n_i, K_i]`` each; n_i may differ between
            ranks and be 0. They share the collective operations: one a normalisation, whatever their number.
        temperature: of the teacher.
        iterations: at least 1.

    Returns:
        Float32 ``[n_i, K_i]``.
    """
    scaled = [o.float() / temperature for o in logits]
    widths = [o.shape[1] for o in scaled]
    maxima = max_over_ranks(torch.cat([_column_maxima(o) for o in scaled])).split(widths)
    scaled = [o.sub_(m) for o, m in zip(scaled, maxima, strict=True)]
    offsets = [o.amax(1, keepdim=True) for o in scaled]
    kernels = [o.sub_(r).exp_() for o, r in zip(scaled, offsets, strict=True)]
    rows = [r[:, 0].exp() for r in offsets]
    columns: Sequence[Tensor] = []
    for _ in range(iterations):
        sums = sum_over_ranks(torch.cat([q.T.mv(u) for q, u in zip(kernels, rows, strict=True)]))
        columns = sums.reciprocal_().split(widths)
        rows = [q.mv(v).reciprocal_() for q, v in zip(kernels, columns, strict=True)]
    return [q.mul_(v).mul_(u[:, None]) for q, v, u in zip(kernels, columns, rows, strict=True)]


def _column_maxima(logits: Tensor) -> Tensor:
    return logits.amax(0) if len(logits) else logits.new_full((logits.shape[1],), -torch.inf)
