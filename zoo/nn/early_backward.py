"""Take the gradient of one part of a loss early, so that its activations are free before the next part runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def early_backward(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Differentiate ``loss`` now, and return 0 that carries its gradient.

    The sum of the result and any other loss has the gradients of both, times whatever the final backward is
    scaled by. Everything around it stays as it is: the optimiser's loop, gradient accumulation, the gradient hooks
    of DDP, which see each parameter once. Without autograd nothing is differentiated.

    Args:
        loss: scalar; its graph is freed.
        parameters: those whose gradients are wanted; ones the loss does not depend on are left alone.
    """
    if not loss.requires_grad:
        return torch.zeros_like(loss)
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    used = [(p, g) for p, g in zip(wanted, gradients, strict=True) if g is not None]
    zero: Tensor = _Carrier.apply([g for _, g in used], loss.detach(), *(p for p, _ in used))
    return zero


class _Carrier(torch.autograd.Function):
    """0 whose gradient was computed before."""

    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor], like: Tensor, *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return torch.zeros_like(like)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        scaled: list[Tensor] = []
        while gradients:  # a few at a time, and these are let go: never all of them twice
            scaled += torch._foreach_mul(gradients[:16], outer[0])
            del gradients[:16]
        return None, None, *scaled
