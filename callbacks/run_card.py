"""The record of a run: one JSON file that says what ran, on what, for how long and how well."""

from __future__ import annotations

import json
import math
import os
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks.interrupts import interrupted_by
from callbacks.output_folder import output_folder
from callbacks.run_facts import (
    dataset_facts,
    git_state,
    hardware,
    hyper_parameters,
    library_versions,
    peak_memory,
    samples_per_batch,
    strict,
)
from datamodules.cache import write_atomically
from zoo.checkpoints import load_reports
from zoo.config_hash import config_hash

FILE_NAME = "run_card.json"
INTERRUPTIONS = (KeyboardInterrupt, SIGTERMException)


class RunCard(Callback):
    """Keep ``run_card.json`` up to date: at the start, after every validation, and at the end, whatever it is.

    The file is replaced in one step, so it can be read at any time. ``status`` is ``running``, ``finished``,
    ``failed`` (``reason``: the exception) or ``interrupted`` (``reason``: SIGINT or SIGTERM); a run that was
    killed outright stays ``running`` and names its ``process``. W&B gets the same facts as ``config.card`` and
    the outcome as ``summary.card``. Numbers that are not finite are null. Times are seconds, memory is bytes.

    ``best`` holds the validation metrics at the step where the method's ``monitor`` was best, ``last`` all
    metrics at the end. ``samples_per_second`` counts ``batch_size`` of the datamodule for every micro-batch and
    device, over training without validation. ``seconds`` and ``best`` go on when a run is resumed.

    Args:
        folder: where to write; default: the trainer's ``default_root_dir``, which the command ``zoo`` sets to
            the run's folder. A trainer that was given no folder writes nothing.
        config: the resolved config; default: the hyper-parameters of method and datamodule.
        method: name of the method; default: its class name in lower case.
        benchmark: name of the benchmark, likewise.
        seed: of the run; default: what ``seed_everything`` was given last.
    """

    family = "run_card"

    def __init__(
        self,
        folder: str | None = None,
        config: dict[str, Any] | None = None,
        method: str | None = None,
        benchmark: str | None = None,
        seed: int | None = None,
    ) -> None:
        self.folder, self.config = folder, config
        self.method, self.benchmark, self.seed = method, benchmark, seed
        #: What the file holds.
        self.card: dict[str, Any] = {}
        self._best: dict[str, Any] | None = None
        self._seconds_before = 0.0
        self._started = self._paused_at = perf_counter()
        self._train_seconds = 0.0
        self._micro_batches = 0

    # -- the run ----------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start the clock; what is loaded from a checkpoint comes after this."""
        self.card, self._best, self._seconds_before = {}, None, 0.0
        self._train_seconds, self._micro_batches = 0.0, 0
        self._started = perf_counter()
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what is known before the first step."""
        self._begin(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training time counts from here; only now is it known which step a checkpoint goes on from."""
        if self.card:
            self.card["resumed_from"] = trainer.global_step
        self._paused_at = perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count; nothing is read from the device."""
        self._micro_batches += 1

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation is no training time; ``zoo validate`` begins here."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._begin(trainer, pl_module)
        elif not trainer.sanity_checking:
            self._train_seconds += perf_counter() - self._paused_at

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the best metrics and write what has been reached."""
        self._paused_at = perf_counter()
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._finish(trainer, pl_module)
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        metrics = _numbers(trainer.callback_metrics)
        monitor, mode = _monitor(pl_module)
        now = metrics.get(monitor or "")
        if now is not None and (self._best is None or _is_better(now, self._best["metrics"][monitor], mode)):
            validated = {k: value for k, value in metrics.items() if k.startswith("val/") or k == monitor}
            self._best = {"step": trainer.global_step, "epoch": trainer.current_epoch, "metrics": validated}
        self._write(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training time counts until here."""
        self._train_seconds += perf_counter() - self._paused_at
        self._paused_at = perf_counter()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the outcome."""
        self._finish(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what is tested."""
        self._begin(trainer, pl_module)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what predicts."""
        self._begin(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the outcome."""
        self._finish(trainer, pl_module)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the outcome."""
        self._finish(trainer, pl_module)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Write why the run ended; it may not even have begun."""
        if not self.card:
            self._begin(trainer, pl_module)
        told = interrupted_by(trainer, exception) if isinstance(exception, INTERRUPTIONS) else None
        self.card["status"] = "interrupted" if told else "failed"
        self.card["reason"] = told or _described(exception)
        try:
            self._write(trainer, pl_module)
        except RuntimeError as error:
            # Torch tells that a loader's process died by an exception out of a signal handler, at any moment: also at
            # this one, where another effect of that death is being told. It is the better reason.
            self.card["reason"] = f"{_described(error)} ({self.card['reason']})"
            self._write(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run continues: the best metrics and the time spent."""
        return {"best": self._best, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was written."""
        self._best, self._seconds_before = state_dict["best"], state_dict["seconds"]

    # -- the card ---------------------------------------------------------------------------------------

    def _seconds(self) -> float:
        return self._seconds_before + perf_counter() - self._started

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        benchmark = getattr(trainer, "datamodule", None)
        config = self.config or hyper_parameters(trainer, pl_module, benchmark)
        seed = os.environ.get("PL_GLOBAL_SEED") if self.seed is None else self.seed
        monitor, mode = _monitor(pl_module)
        backbone = config["model"].get("init_args", {}).get("backbone")
        self.card = {
            "verb": str(trainer.state.fn.value) if trainer.state.fn else None,
            "status": "running",
            "reason": None,
            "method": self.method or type(pl_module).__name__.lower(),
            "benchmark": self.benchmark or (type(benchmark).__name__.lower() if benchmark else None),
            "backbone": backbone if isinstance(backbone, str) else None,
            "seed": None if seed is None else int(seed),
            "config_hash": config_hash(config),
            "started": _now(),
            "ended": None,
            "resumed_from": 0,
            "monitor": monitor,
            "monitor_mode": mode,
            "parameters": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            "git": git_state(),
            "versions": library_versions(),
            "hardware": hardware(trainer),
            "process": os.getpid(),
            "data": dataset_facts(benchmark),
            "load_reports": {name: report.as_dict() for name, report in load_reports(pl_module).items()},
            "config": config,
        }
        for logger in _wandb_loggers(trainer):
            run = logger.experiment
            self.card["wandb"] = {
                "id": run.id,
                "project": run.project,
                "url": None if run.offline else run.url,
            }
            facts = {key: value for key, value in self.card.items() if key != "config"}
            logger.log_hyperparams({"card": facts})
        self._write(trainer, pl_module)

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.card:
            self.card["status"] = "finished"
            self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        samples = self._micro_batches * samples_per_batch(trainer)
        outcome = {
            "status": self.card["status"],
            "reason": self.card["reason"],
            "ended": None if self.card["status"] == "running" else _now(),
            "steps": trainer.global_step,
            "epochs": trainer.current_epoch,
            "seconds": self._seconds(),
            "samples_per_second": (
                samples * trainer.world_size / self._train_seconds
                if samples and self._train_seconds
                else None
            ),
            "peak_memory": peak_memory(trainer.strategy.root_device),
            "best": self._best,
            "last": {"step": trainer.global_step, "metrics": _numbers(trainer.callback_metrics)},
        }
        self.card |= outcome
        for logger in _wandb_loggers(trainer):
            logger.experiment.summary.update({"card": strict(outcome)})
        folder = output_folder(trainer, self.folder, "")
        if folder is not None:
            content = json.dumps(strict(self.card), indent=1, allow_nan=False, default=str).encode()
            write_atomically(Path(folder) / FILE_NAME, lambda file: file.write(content))


def _described(exception: BaseException) -> str:
    return "".join(traceback.format_exception_only(exception)).strip()


def _monitor(pl_module: L.LightningModule) -> tuple[str | None, str]:
    return getattr(pl_module, "monitor", None), getattr(pl_module, "monitor_mode", "max")


def _is_better(now: float, before: float, mode: str) -> bool:
    """Not a number is never better, and anything is better than it."""
    if math.isnan(now) or math.isnan(before):
        return math.isnan(before) and not math.isnan(now)
    return now > before if mode == "max" else now < before


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items()}


def _wandb_loggers(trainer: L.Trainer) -> list[WandbLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
