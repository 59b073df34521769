"""Values that change from step to step: pure functions of the step's number, so that a run can stop and resume.

The conventions are those of the released self-distillation code (DINO, iBOT, DINOv2, POA): steps count from 0, a
warm-up reaches its value in its last step, and a cosine starts when the warm-up is over.
"""

from __future__ import annotations

import math


def linear(step: float, steps: float, start: float, end: float) -> float:
    """``linspace(start, end, steps)[step]``, and ``end`` from then on."""
    if step >= steps:
        return end
    return start + (end - start) * step / (steps - 1) if steps > 1 else start


def cosine(step: int, total: float, start: float, end: float, warmup: int = 0, share: float = 1.0) -> float:
    """Half a cosine from ``start`` to ``end``.

    Args:
        step: 0-based number of the step.
        total: T, the steps of the run; from T on the value is ``end``.
        start: value at step ``warmup``.
        end: value the cosine runs into.
        warmup: step at which the cosine starts; before it the value is ``start``.
        share: of the cosine that the run covers. It is computed for ``floor(T / share)`` steps and broken off
            after T (POA stretches it so, with shares of 0.78 and 0.9).
    """
    if step >= total:
        return end
    progress = max(step - warmup, 0) / max(math.floor(total / share) - warmup, 1)
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * progress))
