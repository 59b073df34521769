"""A few real steps of a run, timed, with everything that belongs to the run but what it would leave behind."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.loggers.logger import DummyLogger

from callbacks import PseudoLabeler, RunCard, WandbCheckpoint
from callbacks.probe import Probe
from callbacks.run_facts import peak_memory
from zoo.method import Batch, Method, trainer_callbacks

#: Left out: they only keep what a run has done.
RECORDERS = (Checkpoint, ProgressBar, RunCard, WandbCheckpoint)
VALIDATED = 3


@dataclasses.dataclass
class Trial:
    """What a few steps have shown.

    Args:
        batch: the first training batch as the method saw it, labelled and mixed.
        step_seconds: of an optimiser step, loading included; the median after warm-up.
        steps: how many were timed.
        trained: steps in all.
        validation_seconds: of a validation batch; None without validation.
        memory: most bytes used, on the ``device`` and of the ``host``.
        checkpoint: bytes of ``last.ckpt``.
        batches: micro-batches of an epoch; inf where the loader has no length.
        validation_batches: batches of one validation.
    """

    batch: Batch
    step_seconds: float
    steps: int
    trained: int
    validation_seconds: float | None
    memory: Mapping[str, int | None]
    checkpoint: int
    batches: float
    validation_batches: int


class Stopwatch(Callback):
    """Times optimiser steps and validation batches, keeps the first batch, and ends training.

    Args:
        warm_up: steps that do not count.
        steps: steps that do.
    """

    step_order = 10**6  # after everything that prepares batches

    def __init__(self, warm_up: int, steps: int) -> None:
        self.warm_up, self.steps = warm_up, steps
        self.batch: Batch = {}
        self.ends: list[float] = []
        self.validated: list[float] = []
        self.batches = float("inf")
        self.checkpoint = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The clock starts."""
        self.batches = trainer.num_training_batches
        self.ends = [_now(trainer)]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the first batch, which callbacks before this one have labelled and mixed."""
        if not self.batch:
            assert isinstance(pl_module, Method)
            self.batch = _kept(_labelled(trainer, pl_module, batch))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the time of a step, and stop after the last one."""
        if trainer.global_step >= len(self.ends):
            self.ends.append(_now(trainer))
        trainer.should_stop = len(self.ends) > self.warm_up + self.steps

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a checkpoint, to see how large it is."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "last.ckpt")
            trainer.save_checkpoint(path, weights_only=False)
            self.checkpoint = path.stat().st_size

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The clock starts again."""
        self.validated = [_now(trainer)]

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Take the time of a batch."""
        self.validated.append(_now(trainer))

    def seconds(self) -> tuple[float, int]:
        """Of a step, and how many were timed; of a run shorter than the warm-up, its last one."""
        steps = [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]
        timed = steps[self.warm_up :] or steps[-1:]
        return median(timed), len(timed)


def try_out(
    method: Method, data: L.LightningDataModule, settings: Mapping[str, Any], warm_up: int, steps: int
) -> Trial:
    """Train and validate for a moment on one device.

    Nothing is logged and nothing kept. Validation leaves out probes, which may read the whole training set.

    Args:
        method: what to train; its weights change.
        data: the benchmark.
        settings: arguments of the Trainer.
        warm_up: steps before the clock counts.
        steps: steps that are timed.
    """
    watch = Stopwatch(warm_up, steps)
    callbacks = [callback for callback in settings["callbacks"] if not isinstance(callback, RECORDERS)]
    changes: dict[str, Any] = {
        **{"devices": 1, "num_nodes": 1, "strategy": "auto", "max_time": None, "min_steps": None},
        **{"min_epochs": None, "limit_val_batches": 0, "num_sanity_val_steps": 0, "profiler": None},
        **{"fast_dev_run": False, "barebones": False, "logger": DummyLogger(), "enable_checkpointing": False},
        **{"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": str(Path.cwd())},
    }
    trainer = L.Trainer(**{**settings, **changes, "callbacks": [*callbacks, watch]})
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)
    trainer.fit(method, datamodule=data)
    seconds, timed = watch.seconds()
    validation_batches = _validation_batches(data, settings)
    if validation_batches:
        trainer.limit_val_batches = min(VALIDATED, validation_batches)
        kept = [callback for callback in trainer_callbacks(trainer) if not isinstance(callback, Probe)]
        trainer.callbacks = kept  # type: ignore[attr-defined]
        trainer.validate(method, datamodule=data, verbose=False)
    last = [end - start for start, end in zip(watch.validated, watch.validated[1:], strict=False)]
    return Trial(
        batch=watch.batch,
        step_seconds=seconds,
        steps=timed,
        trained=len(watch.ends) - 1,
        validation_seconds=last[-1] if last else None,
        memory=peak_memory(trainer.strategy.root_device),
        checkpoint=watch.checkpoint,
        batches=watch.batches,
        validation_batches=validation_batches,
    )


def _validation_batches(data: L.LightningDataModule, settings: Mapping[str, Any]) -> int:
    limit, there = settings["limit_val_batches"], len(data.val_dataloader())
    limit = 1.0 if limit is None else limit
    return min(there, int(limit) if isinstance(limit, int) else int(there * limit))


def _labelled(trainer: L.Trainer, method: Method, batch: Batch) -> Batch:
    """The batch as it will be once pseudo-labels are made, where a run begins without them."""
    for labeler in trainer_callbacks(trainer):
        if isinstance(labeler, PseudoLabeler) and method.global_step < labeler.start_step:
            start, labeler.start_step = labeler.start_step, 0
            batch = labeler.label(method, batch)
            labeler.start_step = start
    return batch


def _now(trainer: L.Trainer) -> float:
    """The time when everything asked of the device is done."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
    return perf_counter()


def _kept(value: Any) -> Any:
    """A copy in the host's memory; what a step writes later does not show."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _kept(inner) for key, inner in value.items() if key != "future"}
    return value
