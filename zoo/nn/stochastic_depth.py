"""Stochastic depth: a residual branch is left out at random, per sample or for a share of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Form = Literal["sample", "batch"]


class StochasticDepth(nn.Module):
    """``x + branch(x)``, where in training a share of the samples goes without the branch.

    Args:
        rate: share p of the samples that skip the branch, 0 to below 1.
        form: ``sample`` drops each sample with probability p and divides the branch of the others by 1 - p
            (Huang et al., 2016). ``batch`` keeps ``a = max(int(b (1 - p)), 1)`` of the b samples, runs the branch
            on them alone and multiplies it by b / a (DINOv2): the dropped work is really saved. As released there,
            rates up to 0.1 are dropped per sample in either form.

    Raises:
        ValueError: another form, or a rate outside [0, 1).
    """

    def __init__(self, rate: float = 0.0, form: Form = "sample") -> None:
        super().__init__()
        if form not in ("sample", "batch"):
            raise ValueError(f"drop_path_form must be sample or batch, got {form!r}")
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop_path_rate must be at least 0 and less than 1, got {rate}")
        self.rate, self.form = rate, form

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """``[B, ...] → [B, ...]``; ``branch`` maps samples to residuals of the same shape."""
        if not self.training or self.rate == 0.0:
            return x + branch(x)
        B = x.shape[0]
        if self.form == "sample" or self.rate <= 0.1:
            keep = x.new_empty(B, *[1] * (x.dim() - 1)).bernoulli_(1 - self.rate).div_(1 - self.rate)
            return x + keep * branch(x)
        kept = max(int(B * (1 - self.rate)), 1)
        rows = torch.randperm(B, device=x.device)[:kept]
        return x.index_add(0, rows, branch(x[rows]).to(x.dtype), alpha=B / kept)

    def extra_repr(self) -> str:
        """Rate and form."""
        return f"rate={self.rate}, form={self.form!r}"
