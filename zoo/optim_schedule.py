"""The learning rate and weight decay of every step, as :class:`zoo.optim.Optim` describes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from zoo.optim import Optim
from zoo.schedules import cosine, linear


def lr_factor(optim: Optim, total_steps: float, steps_per_epoch: float = 0) -> Callable[[int], float]:
    """Return the factor on the base learning rate at optimiser step ``i`` (0-based)."""
    total = optim.total_steps or total_steps
    warmup = optim.warmup_steps or round(optim.warmup_epochs * steps_per_epoch)
    end = optim.final_lr / optim.lr if optim.lr else 0.0
    drop_unit = 1 if optim.drop_in == "steps" else max(steps_per_epoch, 1)

    def factor(step: int) -> float:
        if optim.schedule == "warmup_cosine":
            if step < min(warmup, total):
                rise = warmup + (optim.warmup_peak == "next")
                return linear(step, rise, optim.warmup_ratio, 1.0)
            return cosine(step, total, 1.0, end, warmup, optim.cosine_share)
        progress = min(step / max(total, 1), 1.0)
        value = {
            "constant": lambda: 1.0,
            "poly": lambda: (1.0 - progress) ** optim.power,
            "cosine": lambda: cosine(step, total, 1.0, end, share=optim.cosine_share),
            "drops": lambda: optim.drop_factor ** _drops(optim, int(step // drop_unit)),
            "inverse_sqrt": lambda: math.sqrt(max(warmup, 1) / max(step, warmup, 1)),
        }[optim.schedule]()
        if step < warmup:
            stair = step - step % optim.warmup_every
            value *= 1.0 - (1.0 - stair / warmup) * (1.0 - optim.warmup_ratio)
        return value

    return factor


def _drops(optim: Optim, number: int) -> int:
    """How often the rate has dropped by the epoch or step ``number`` (0-based)."""
    return 0 if number < optim.drop_start else (number - optim.drop_start) // optim.drop_every + 1


def weight_decay_factor(optim: Optim, total_steps: float) -> Callable[[int], float]:
    """Return the factor on the base weight decay at optimiser step ``i`` (0-based)."""
    if optim.final_weight_decay is None:
        return lambda step: 1.0
    total, end = optim.total_steps or total_steps, optim.final_weight_decay / optim.weight_decay
    return lambda step: cosine(step, total, 1.0, end, share=optim.cosine_share)


class OptimSchedule(LRScheduler):
    """Sets rate and weight decay of every parameter group before each step.

    Both are functions of the step's number, and rates of ``scale``, which a callback may lower
    (:class:`callbacks.ReduceOnPlateau`): a checkpoint holds nothing but these.

    Args:
        optimizer: its groups hold the base values and ``frozen`` marks, see :func:`zoo.optim.parameter_groups`.
        optim: the description.
        total_steps: T of the schedules, where ``optim.total_steps`` does not say.
        steps_per_epoch: optimiser steps of an epoch; only needed for lengths given in epochs.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        optim: Optim,
        total_steps: float,
        steps_per_epoch: float = 0,
    ) -> None:
        self._lr_factor = lr_factor(optim, total_steps, steps_per_epoch)
        self._decay_factor = weight_decay_factor(optim, total_steps)
        self._frozen_steps = optim.frozen_steps or math.ceil(optim.frozen_epochs * steps_per_epoch)
        #: Factor on every learning rate, besides the schedule.
        self.scale = 1.0
        self._base_decays = [group["weight_decay"] for group in optimizer.param_groups]
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """Learning rates of the step that comes next."""
        step = self.last_epoch
        factor = self._lr_factor(step)
        return [
            0.0 if group.get("frozen") and step < self._frozen_steps else base * factor * self.scale
            for base, group in zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        ]

    def step(self, epoch: int | None = None) -> None:
        """Move on to the next step."""
        super().step(epoch)
        factor = self._decay_factor(self.last_epoch)
        for group, base in zip(self.optimizer.param_groups, self._base_decays, strict=True):
            group["weight_decay"] = base * factor

    def state_dict(self) -> dict[str, Any]:
        """The number of the step and the scale; everything else follows from them."""
        return {
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "_last_lr": self._last_lr,
            "scale": self.scale,
        }
