"""Optimiser groups, schedules and gradient clipping, described by one small dataclass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from zoo.registry import UnknownNameError

Schedule = Literal["constant", "poly", "cosine", "warmup_cosine", "drops", "inverse_sqrt"]


@dataclass
class ParameterRule:
    """What a parameter-name rule changes: factors on the base learning rate and weight decay."""

    lr: float = 1.0
    weight_decay: float = 1.0


@dataclass
class Optim:
    """Optimiser, per-name rules, schedules and gradient clipping of a method.

    Args:
        name: class name in ``torch.optim`` (any spelling of case: ``adamw``, ``SGD``).
        lr: base learning rate.
        weight_decay: base weight decay.
        options: further arguments of the optimiser (``momentum``, ``betas``, ``fused``, ...).
        rules: substring of a parameter's name (within the student) → factors. The longest matching
            substring wins, ties go to the alphabetically first (the mmcv convention of the UDA literature).
        no_decay: shell patterns of names without weight decay, e.g. ``["*.bias", "*norm*"]``.
        layer_decay: learning rates shrink by this factor from block to block towards the input: block i of L has
            ``layer_decay^(L - i)``, embeddings ``layer_decay^(L + 1)``, final norm and heads 1. Needs a student
            with ``block_of`` and ``num_blocks`` (:class:`zoo.nn.tokens.TokenBackbone`).
        schedule: of the learning rate. ``poly`` is ``(1 - i/T)^power``; ``cosine`` is ``(1 + cos(pi i/T)) / 2``,
            and both are scaled by the warm-up; ``warmup_cosine`` first rises to ``lr`` (``warmup_peak``
            says when) and then follows half a cosine down to ``final_lr``. ``drops`` multiplies the rate by
            ``drop_factor`` after ``drop_start`` epochs and every ``drop_every`` epochs from then on (SSAST, AST), or
            steps (C-BSN), as ``drop_in`` says.
            ``inverse_sqrt`` falls as ``sqrt(warmup_steps / i)`` after the warm-up (the transformer's schedule).
        power: exponent of ``poly``.
        drop_start: epochs before the first drop.
        drop_every: epochs from drop to drop.
        drop_in: whether these two count ``epochs`` or optimiser ``steps``.
        drop_factor: of the rate, at each drop.
        final_lr: where ``cosine`` and ``warmup_cosine`` end.
        warmup_steps: so many first steps are scaled by
            ``1 - (1 - i/warmup_steps)(1 - warmup_ratio)``; ``warmup_cosine``: steps of the rise.
        warmup_epochs: the same in epochs of the loader; give one of the two.
        warmup_ratio: where the linear warm-up starts, as a share of the base rate.
        warmup_peak: ``warmup_cosine`` reaches ``lr`` in the ``last`` warm-up step and has it once more in the first of
            the cosine (DINO), or only in the latter, ``next`` (VoCo).
        warmup_every: the warm-up of all but ``warmup_cosine`` rises in stairs of so many steps (SSAST: 50).
        total_steps: T of the schedule; ``None`` takes the trainer's number of optimiser steps.
        cosine_share: of the cosines (rate and weight decay) that the run covers, see :func:`zoo.schedules.cosine`.
        final_weight_decay: weight decay follows half a cosine from ``weight_decay`` to this; ``None``: constant.
        frozen: shell patterns of names that stay as they are at first (DINO: ``["*last_layer*"]``).
        frozen_steps: for so many steps.
        frozen_epochs: the same in epochs; give one of the two.
        freeze_by: ``rate``: their learning rate is 0 (DINOv2); ``gradient``: their gradients are dropped after
            clipping, so that moments start afterwards, too (DINO).
        clip_norm: largest L2 norm of gradients; ``None`` leaves clipping to the trainer.
        clip_by: what has that norm: ``all`` gradients together, each ``module`` (child of the student: backbone,
            head), or each ``parameter``.

    Steps count optimiser steps of the real training; look-ahead steps never advance a schedule.

    Raises:
        ValueError: an option out of range, or two that exclude each other.
    """

    name: str = "adamw"
    lr: float = 6e-5
    weight_decay: float = 0.01
    options: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, ParameterRule] = field(default_factory=dict)
    no_decay: list[str] = field(default_factory=list)
    layer_decay: float = 1.0
    schedule: Schedule = "poly"
    power: float = 1.0
    drop_start: int = 10
    drop_every: int = 5
    drop_in: Literal["epochs", "steps"] = "epochs"
    drop_factor: float = 0.5
    final_lr: float = 0.0
    warmup_steps: int = 0
    warmup_epochs: float = 0.0
    warmup_ratio: float = 1e-6
    warmup_peak: Literal["last", "next"] = "last"
    warmup_every: int = 1
    total_steps: int | None = None
    cosine_share: float = 1.0
    final_weight_decay: float | None = None
    frozen: list[str] = field(default_factory=list)
    frozen_steps: int = 0
    frozen_epochs: float = 0.0
    freeze_by: Literal["rate", "gradient"] = "rate"
    clip_norm: float | None = None
    clip_by: Literal["all", "module", "parameter"] = "all"

    def __post_init__(self) -> None:
        """Accept rules written as plain dicts (checkpoints and YAML hold nothing else)."""
        self.rules = {
            key: rule if isinstance(rule, ParameterRule) else ParameterRule(**rule)
            for key, rule in self.rules.items()
        }
        for option, value, allowed in (
            (
                "schedule",
                self.schedule,
                ("warmup_cosine", "constant", "poly", "cosine", "drops", "inverse_sqrt"),
            ),
            ("drop_in", self.drop_in, ("epochs", "steps")),
            ("warmup_peak", self.warmup_peak, ("last", "next")),
            ("freeze_by", self.freeze_by, ("rate", "gradient")),
            ("clip_by", self.clip_by, ("all", "module", "parameter")),
        ):
            if value not in allowed:
                raise ValueError(
                    f"optim.{option} must be {', '.join(allowed[:-1])} or {allowed[-1]}, not {value!r}"
                )
        for name in ("warmup", "frozen"):
            if getattr(self, f"{name}_steps") and getattr(self, f"{name}_epochs"):
                raise ValueError(f"optim.{name}_steps and optim.{name}_epochs say the same thing: give one")
        if self.warmup_every < 1 or self.drop_every < 1 or self.drop_start < 0:
            raise ValueError(
                f"optim.warmup_every={self.warmup_every} and drop_every={self.drop_every} must be at least 1, "
                f"drop_start={self.drop_start} at least 0"
            )
        if not 0.0 < self.cosine_share <= 1.0:
            raise ValueError(f"optim.cosine_share must be within (0, 1], not {self.cosine_share}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"optim.clip_norm must be positive or null, not {self.clip_norm}")
        if self.final_weight_decay is not None and not self.weight_decay:
            raise ValueError("optim.final_weight_decay scales weight_decay, which is 0: set it above 0")

    @property
    def in_epochs(self) -> bool:
        """Whether any length is given in epochs, so that the loader's length must be known."""
        drops = self.schedule == "drops" and self.drop_in == "epochs"
        return bool(self.warmup_epochs or self.frozen_epochs or drops)

    @property
    def has_end(self) -> bool:
        """Whether any value depends on how long training takes."""
        return (
            self.schedule not in ("constant", "drops", "inverse_sqrt") or self.final_weight_decay is not None
        )


def parameter_groups(modules: Iterable[nn.Module], optim: Optim) -> list[dict[str, Any]]:
    """Group the trainable parameters of ``modules`` by the learning rate and weight decay they get.

    Parameters shared between modules are taken once. Names are relative to each module. Groups that are frozen
    at first carry ``frozen: True``.

    Raises:
        TypeError: ``layer_decay`` with a module that does not know its blocks.
        ValueError: a pattern of ``frozen`` matches no name.
    """
    keys = sorted(sorted(optim.rules), key=len, reverse=True)
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    unmatched = set(optim.frozen)
    for module in modules:
        for name, parameter in module.named_parameters():
            unmatched -= {pattern for pattern in unmatched if fnmatchcase(name, pattern)}
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            rule = next((optim.rules[key] for key in keys if key in name), ParameterRule())
            rate = optim.lr * rule.lr * _depth_factor(module, name, optim.layer_decay)
            decay = 0.0 if _matches(name, optim.no_decay) else optim.weight_decay * rule.weight_decay
            groups.setdefault((rate, decay, _matches(name, optim.frozen)), []).append(parameter)
    if unmatched:
        raise ValueError(f"optim.frozen: no parameter matches {', '.join(map(repr, sorted(unmatched)))}")
    return [
        {"params": params, "lr": lr, "weight_decay": decay, **({"frozen": True} if frozen else {})}
        for (lr, decay, frozen), params in groups.items()
    ]


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


@torch.no_grad()
def clip_gradients(modules: Iterable[nn.Module], optim: Optim) -> None:
    """Clip the gradients of ``modules`` in place as ``optim.clip_norm`` and ``clip_by`` say.

    Nothing is read back from the device: factors are computed there and applied to all gradients, 1 where the
    norm is small enough.
    """
    if optim.clip_norm is None:
        return
    for parameters in _clipped_together(modules, optim.clip_by):
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            parts = torch._foreach_norm(gradients)
            norms = torch.stack([norm.to(parts[0].device) for norm in parts])
            together = optim.clip_by != "parameter"
            factors = (optim.clip_norm / ((norms.norm() if together else norms) + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factors if together else list(factors.unbind()))


def drop_frozen_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Forget the gradients of groups that are frozen now."""
    for group in optimizer.param_groups:
        if group.get("frozen") and group["lr"] == 0.0:
            for parameter in group["params"]:
                parameter.grad = None


def _clipped_together(modules: Iterable[nn.Module], clip_by: str) -> Iterator[list[nn.Parameter]]:
    if clip_by == "module":
        for module in modules:
            yield list(module.parameters(recurse=False))
            yield from (list(child.parameters()) for child in module.children())
    else:  # the norms of single parameters are taken in one call, too
        yield [parameter for module in modules for parameter in module.parameters()]


def _depth_factor(module: nn.Module, name: str, layer_decay: float) -> float:
    if layer_decay == 1.0:
        return 1.0
    block_of: Any = getattr(module, "block_of", None)
    if block_of is None:
        raise TypeError(
            f"optim.layer_decay={layer_decay}: {type(module).__name__} does not say which block a parameter "
            "belongs to (block_of, num_blocks); set it to 1 or take a token backbone"
        )
    depth: Any = module.num_blocks
    return layer_decay ** (depth + 1 - block_of(name))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
