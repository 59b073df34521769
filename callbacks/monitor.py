"""What monitors share: they look on the steps that the logger writes, and cost nothing on all others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from zoo.method import Method


class Monitor(Callback, ABC):
    """Base of the monitors: :meth:`look` is called after every optimiser step that the logger writes.

    With gradient accumulation that is after the last micro-batch of the step; virtual steps of look-aheads never
    count. A monitor draws no random numbers and changes nothing that training reads.
    """

    step_order = 200  # behind teachers: they have moved

    _step = -1

    @abstractmethod
    def look(self, trainer: L.Trainer, method: Method, batch: Any) -> None:
        """Measure and log."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the step."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look, if the optimiser stepped and the logger writes."""
        assert isinstance(pl_module, Method)
        if trainer.global_step != self._step and pl_module.writes_logs():
            self.look(trainer, pl_module, batch)


def over_ranks(trainer: L.Trainer, sums: Tensor) -> Tensor:
    """Sums of all processes; one message, and only where there are several."""
    return trainer.strategy.reduce(sums, reduce_op="sum") if trainer.world_size > 1 else sums


class NoMonitors(Callback):
    """Switches default monitors off: those whose family is listed, or all of them.

    In a config: ``trainer: {callbacks+: [{class_path: callbacks.NoMonitors}]}``.

    Args:
        families: ``throughput``, ``teacher_distance``, ``pseudo_labels``, ``collapse_monitor``, ``batch_preview``.

    Raises:
        ValueError: an unknown family.
    """

    ALL = ("throughput", "teacher_distance", "pseudo_labels", "collapse_monitor", "batch_preview")

    def __init__(self, families: Sequence[str] = ALL) -> None:
        if unknown := [family for family in families if family not in self.ALL]:
            raise ValueError(f"families: there is no monitor {unknown[0]!r}, only {', '.join(self.ALL)}")
        #: Defaults of these families are not added, see :meth:`zoo.Method.configure_callbacks`.
        self.stands_for = tuple(families)
