"""Loss weights that change during training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Shape = Literal["constant", "step", "linear", "sigmoid", "cosine"]


@dataclass
class WeightSchedule:
    """A loss weight as a function of the optimiser step.

    Until ``start`` it is ``initial``, ``steps`` later and ever after it is ``weight``; with
    ``t = (step - start) / steps`` it is ``initial + r(t) * (weight - initial)`` in between:

    * ``constant``: ``weight`` from the first step on;
    * ``step``: no in between, ``weight`` from ``start`` on;
    * ``linear``: ``r = t``;
    * ``sigmoid``: ``r = exp(-5 (1 - t)^2)`` (Laine and Aila, "Temporal Ensembling", ICLR 2017, section 3);
    * ``cosine``: ``r = (1 - cos(pi t)) / 2``.

    An ``initial`` above ``weight`` ramps down.

    Args:
        weight: where the schedule ends.
        schedule: its shape.
        start: optimiser step of the real training at which it leaves ``initial``; look-ahead steps do not count.
        steps: length of the ramp.
        initial: where it begins.

    Raises:
        ValueError: an unknown shape, a negative weight or step, or a ramp without length.
    """

    weight: float = 1.0
    schedule: Shape = "constant"
    start: int = 0
    steps: int = 0
    initial: float = 0.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.schedule not in ("constant", "step", "linear", "sigmoid", "cosine"):
            raise ValueError(
                f"WeightSchedule: schedule must be constant, step, linear, sigmoid or cosine, not {self.schedule!r}"
            )
        for argument in ("weight", "start", "steps", "initial"):
            if getattr(self, argument) < 0:
                raise ValueError(
                    f"WeightSchedule: {argument} must not be negative, got {getattr(self, argument)}"
                )
        if self.schedule in ("linear", "sigmoid", "cosine") and self.steps == 0:
            raise ValueError(
                f"WeightSchedule: schedule={self.schedule!r} is a ramp: set steps, its length, to at least 1"
            )

    def __call__(self, step: int) -> float:
        """Return the weight at optimiser step ``step`` (0-based)."""
        if self.schedule == "constant" or step >= self.start + self.steps:
            return self.weight
        if step < self.start:
            return self.initial
        t = (step - self.start) / self.steps
        ramp = {
            "step": 0.0,
            "linear": t,
            "sigmoid": math.exp(-5.0 * (1.0 - t) ** 2),
            "cosine": 0.5 * (1.0 - math.cos(math.pi * t)),
        }[self.schedule]
        return self.initial + ramp * (self.weight - self.initial)


def weight_schedule(value: float | Mapping[str, Any] | WeightSchedule) -> WeightSchedule:
    """A schedule from a constant weight, or from plain values (checkpoints and YAML hold nothing else)."""
    if isinstance(value, WeightSchedule):
        return value
    return WeightSchedule(**value) if isinstance(value, Mapping) else WeightSchedule(value)
