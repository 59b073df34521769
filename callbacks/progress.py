"""A progress bar of the whole run: loss, metric, samples a second, time left."""

from __future__ import annotations

import math
import sys
from datetime import timedelta
from time import perf_counter
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class RunProgress(ProgressBar):
    """One bar from the first optimiser step to the last.

    It shows the loss, the monitored metric with its best value, samples a second over the last moments of training,
    and the time left, validations included. It is drawn at most every ``refresh`` seconds, and only then is anything
    read from the device. Where nobody watches (standard error is no terminal), each validation prints one plain line
    and nothing else.

    Args:
        refresh: least seconds between two drawings.
        interactive: draw a bar; None finds out whether standard error is a terminal.

    Raises:
        ValueError: ``refresh`` is not positive.
    """

    def __init__(self, refresh: float = 1.0, interactive: bool | None = None) -> None:
        super().__init__()
        if refresh <= 0:
            raise ValueError(f"refresh must be positive, got {refresh}.")
        self.refresh = refresh
        self.interactive = sys.stderr.isatty() if interactive is None else interactive
        self._enabled = True
        self._bar: Any = None
        self._best: float | None = None
        self._total = math.inf
        self._start_step = 0
        self._started = self._drawn = self._paused = 0.0
        self._batches, self._idle = 0, 0.0  # since the last drawing

    def disable(self) -> None:
        """Lightning calls it on all but the first process."""
        self._enabled = False

    def enable(self) -> None:
        """The opposite."""
        self._enabled = True

    # -- training ---------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The clock starts."""
        self._total, self._start_step = trainer.estimated_stepping_batches, trainer.global_step
        self._started = self._drawn = perf_counter()
        self._batches, self._idle = 0, 0.0
        if self._enabled and self.interactive:
            total = None if math.isinf(self._total) else int(self._total)
            bounded = "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt}{postfix}"
            self._bar = tqdm(
                total=total, initial=self._start_step, file=sys.stderr, dynamic_ncols=True, leave=True,
                bar_format=bounded if total else "{n_fmt} steps{postfix}",
            )  # fmt: skip

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and draw when it is time."""
        self._batches += 1
        if self._bar is not None and perf_counter() - self._drawn >= self.refresh:
            self._draw(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation is no training time."""
        self._paused = perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the metric; without a bar, print a line."""
        self._idle += perf_counter() - self._paused
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        monitor = getattr(pl_module, "monitor", None)
        if monitor is not None and (value := trainer.callback_metrics.get(monitor)) is not None:
            pick = max if getattr(pl_module, "monitor_mode", "max") == "max" else min
            known = [
                number for number in (self._best, float(value)) if number is not None and number == number
            ]
            self._best = pick(known) if known else None
        if not self._enabled:
            return
        if self._bar is not None:
            self._draw(trainer, pl_module)
        elif not self.interactive:
            of = "" if math.isinf(self._total) else f"/{self._total:.0f}"
            told = ", ".join(self.facts(trainer, pl_module))
            print(f"step {trainer.global_step}{of}: {told}", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the end."""
        if self._bar is not None:
            self._draw(trainer, pl_module)
            self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Leave the terminal as it was."""
        self._close()

    # -- what is told -----------------------------------------------------------------------------------

    def facts(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[str]:
        """Loss, metric, samples a second, time left; reads from the device, and starts a new moment."""
        now, metrics, found = perf_counter(), trainer.callback_metrics, []
        if (loss := metrics.get("train/loss")) is not None:
            found.append(f"loss {float(loss):.4g}")
        monitor = getattr(pl_module, "monitor", None)
        if monitor is not None and (value := metrics.get(monitor)) is not None:
            best = f" (best {self._best:.4g})" if self._best is not None else ""
            found.append(f"{monitor.rpartition('/')[2]} {float(value):.4g}{best}")
        training = now - self._drawn - self._idle
        samples = self._batches * getattr(getattr(trainer, "datamodule", None), "batch_size", 0)
        if samples and training > 0:
            found.append(f"{samples * trainer.world_size / training:.3g} samples/s")
        done = trainer.global_step - self._start_step
        if done and math.isfinite(self._total):
            left = (now - self._started) / done * (self._total - trainer.global_step)
            found.append(f"{timedelta(seconds=round(max(left, 0)))} left")
        self._drawn, self._batches, self._idle = now, 0, 0.0
        return found

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bar.n = trainer.global_step
        self._bar.set_postfix_str(", ".join(self.facts(trainer, pl_module)), refresh=False)
        self._bar.refresh()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
