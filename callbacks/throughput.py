"""Throughput: samples a second, and the share of time that training waits for data."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import lightning as L
import torch

from callbacks.monitor import Monitor, over_ranks
from callbacks.run_facts import samples_per_batch
from zoo.method import Method


class Throughput(Monitor):
    """Logs ``perf/samples_per_s``, ``perf/step_ms`` and ``perf/data_wait`` of the steps since it last did.

    ``perf/data_wait`` is the share of time in which the process stood still for the loader: from the end of one
    step until the next batch arrived, before transfer and augmentation. Validation counts nowhere. Samples are
    those of all ranks, a labelled and an unlabelled image being one.
    """

    family = "throughput"
    step_order = 900  # behind checkpoints: what other callbacks do is no waiting for data

    def __init__(self) -> None:
        self._restart(perf_counter())

    def _restart(self, now: float) -> None:
        self._since = self._mark = now
        self._waited, self._batches = 0.0, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._step_at = trainer.global_step
        self._restart(perf_counter())

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count how long the batch was waited for."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        assert isinstance(pl_module, Method)
        self._waited += max(0.0, pl_module.batch_arrived - self._mark)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; log where the logger writes."""
        self._batches += 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._mark = perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation is no training time."""
        self._paused = perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on."""
        self._mark = perf_counter()
        self._since += self._mark - self._paused

    def look(self, trainer: L.Trainer, method: Method, batch: Any) -> None:
        """Log the means of all steps since the last time."""
        now = perf_counter()
        seconds, steps = max(now - self._since, 1e-9), trainer.global_step - self._step_at
        waited = self._waited / seconds
        if trainer.world_size > 1:
            total = over_ranks(trainer, torch.tensor(waited, device=method.device))
            waited = float(total) / trainer.world_size
        values = {"perf/step_ms": 1000 * seconds / steps, "perf/data_wait": waited}
        if samples := samples_per_batch(trainer):
            values["perf/samples_per_s"] = self._batches * samples * trainer.world_size / seconds
        method.log_dict(values)
        self._step_at = trainer.global_step
        self._restart(now)
