"""Optimiser groups and learning-rate schedules, described by one small dataclass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from zoo.registry import UnknownNameError

Schedule = Literal["constant", "poly", "cosine"]


@dataclass
class ParameterRule:
    """What a parameter-name rule changes: factors on the base learning rate and weight decay."""

    lr: float = 1.0
    weight_decay: float = 1.0


@dataclass
class Optim:
    """Optimiser, per-name rules and schedule of a method.

    Args:
        name: class name in ``torch.optim`` (any spelling of case: ``adamw``, ``SGD``).
        lr: base learning rate.
        weight_decay: base weight decay.
        options: further arguments of the optimiser (``momentum``, ``betas``, ``fused``, ...).
        rules: substring of a parameter's name (within the student) → factors. The longest matching
            substring wins, ties go to the alphabetically first (the mmcv convention of the UDA literature).
        schedule: ``poly`` is ``(1 - i/T)^power``; ``cosine`` is ``(1 + cos(pi i/T)) / 2``.
        power: exponent of ``poly``.
        warmup_steps: so many first steps are scaled by ``1 - (1 - i/warmup_steps)(1 - warmup_ratio)``.
        warmup_ratio: where the linear warm-up starts, as a share of the base rate.
        total_steps: T of the schedule; ``None`` takes the trainer's number of optimiser steps.

    Steps count optimiser steps of the real training; look-ahead steps never advance the schedule.
    """

    name: str = "adamw"
    lr: float = 6e-5
    weight_decay: float = 0.01
    options: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, ParameterRule] = field(default_factory=dict)
    schedule: Schedule = "poly"
    power: float = 1.0
    warmup_steps: int = 0
    warmup_ratio: float = 1e-6
    total_steps: int | None = None

    def __post_init__(self) -> None:
        """Accept rules written as plain dicts (checkpoints and YAML hold nothing else)."""
        self.rules = {
            key: rule if isinstance(rule, ParameterRule) else ParameterRule(**rule)
            for key, rule in self.rules.items()
        }
        if self.schedule not in ("constant", "poly", "cosine"):
            raise ValueError(f"optim.schedule must be constant, poly or cosine, not {self.schedule!r}")


def parameter_groups(modules: Iterable[nn.Module], optim: Optim) -> list[dict[str, Any]]:
    """Group the trainable parameters of ``modules`` by the learning rate and weight decay they get.

    Parameters shared between modules are taken once. Names are relative to each module.
    """
    keys = sorted(sorted(optim.rules), key=len, reverse=True)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            rule = next((optim.rules[key] for key in keys if key in name), ParameterRule())
            setting = (optim.lr * rule.lr, optim.weight_decay * rule.weight_decay)
            groups.setdefault(setting, []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def build_optimizer(modules: Iterable[nn.Module], optim: Optim) -> torch.optim.Optimizer:
    """Build the optimiser that ``optim`` describes over the trainable parameters of ``modules``.

    Raises:
        UnknownNameError: ``optim.name`` is no class of ``torch.optim``.
        ValueError: nothing is trainable.
    """
    classes = {
        name.lower(): cls
        for name, cls in vars(torch.optim).items()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    }
    if optim.name.lower() not in classes:
        raise UnknownNameError("optim.name", optim.name, classes, "help(torch.optim)")
    groups = parameter_groups(modules, optim)
    if not groups:
        raise ValueError("there is nothing to optimise: every parameter of the student is frozen")
    return classes[optim.name.lower()](groups, **optim.options)


def lr_factor(optim: Optim, total_steps: float) -> Callable[[int], float]:
    """Return the factor on the base learning rate at optimiser step ``i`` (0-based), for ``LambdaLR``."""
    total = optim.total_steps or total_steps

    def factor(step: int) -> float:
        progress = min(step / max(total, 1), 1.0)
        value = {
            "constant": 1.0,
            "poly": (1.0 - progress) ** optim.power,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        }[optim.schedule]
        if step < optim.warmup_steps:
            value *= 1.0 - (1.0 - step / optim.warmup_steps) * (1.0 - optim.warmup_ratio)
        return value

    return factor
