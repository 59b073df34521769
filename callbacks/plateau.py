"""Lower the learning rate when a validation metric stands still."""

from __future__ import annotations

import math
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from zoo.optim_schedule import OptimSchedule


class ReduceOnPlateau(Callback):
    """Multiply the schedule's rates by ``factor`` after more than ``patience`` validations without improvement.

    The rule of :class:`torch.optim.lr_scheduler.ReduceLROnPlateau` (relative threshold), on top of whatever
    schedule and warm-up ``optim`` describes.

    Args:
        monitor: name of a logged validation metric.
        mode: whether a larger (``max``) or smaller (``min``) value of it is better.
        factor: on the learning rate, at each reduction.
        patience: validations without improvement that are put up with.
        threshold: least relative change that counts as improvement.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["max", "min"] = "max",
        factor: float = 0.5,
        patience: int = 2,
        threshold: float = 1e-4,
    ) -> None:
        super().__init__()
        if mode not in ("max", "min") or not 0.0 < factor < 1.0 or patience < 0:
            raise ValueError(
                f"mode={mode!r} must be max or min, factor={factor} within (0, 1), patience={patience} at least 0"
            )
        self.monitor, self.mode, self.factor = monitor, mode, factor
        self.patience, self.threshold = patience, threshold
        self.best = -math.inf if mode == "max" else math.inf
        self.waited = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the metric with the best so far.

        Raises:
            MisconfigurationException: the metric was not logged.
        """
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            raise MisconfigurationException(
                f"ReduceOnPlateau(monitor={self.monitor!r}): validation logs "
                f"{', '.join(sorted(trainer.callback_metrics)) or 'nothing'}"
            )
        value = float(trainer.callback_metrics[self.monitor])
        sign = 1.0 if self.mode == "max" else -1.0
        # torch's: on metrics below 0 an equal value counts as improvement, as in SSAST's generative pre-training.
        if sign * value > sign * self.best * (1.0 + sign * self.threshold):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.waited > self.patience:
            self.waited = 0
            for config in trainer.lr_scheduler_configs:
                if isinstance(config.scheduler, OptimSchedule):
                    config.scheduler.scale *= self.factor

    def state_dict(self) -> dict[str, Any]:
        """The best value and how long ago it was."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]
