"""Equal average of the weights at the ends of epochs, as AST and SSAST report AudioSet."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT


class EpochAverage(WeightAveraging):
    """Evaluate and keep the mean of the weights after the epochs ``first`` to ``last`` (counted from 1).

    Lightning's :class:`~lightning.pytorch.callbacks.WeightAveraging` with one update per epoch, before its last
    validation. Until there is a first update, everything is as without this callback. From then on validation,
    checkpoints and the end of training have the averaged weights; training goes on with its own.

    Args:
        first: first epoch of the average.
        last: last one; ``None``: of the run.

    Raises:
        ValueError: an empty range.
    """

    def __init__(self, first: int = 6, last: int | None = None) -> None:
        super().__init__()
        if first < 1 or (last is not None and last < first):
            raise ValueError(f"first={first} and last={last} are no range of epochs, which count from 1")
        self.first, self.last = first, last

    @property
    def started(self) -> bool:
        """Whether there is an average."""
        return self._average_model is not None and bool(self._average_model.n_averaged > 0)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take the weights into the average at the end of an epoch."""
        epoch = trainer.current_epoch + 1
        if trainer.is_last_batch and self.first <= epoch and (self.last is None or epoch <= self.last):
            assert self._average_model is not None
            self._average_model.update_parameters(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing: it was done before the validation."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The method ends with the averaged weights; it is said where there are none."""
        if self.started:
            super().on_train_end(trainer, pl_module)
        else:
            rank_zero_warn(
                f"EpochAverage(first={self.first}) averaged nothing: training ended before that epoch did. "
                "Lower first, or train longer"
            )

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate the average, where there is one."""
        if self.started:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the weights of training."""
        if self.started:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the average, and beside it the weights of training."""
        if self.started:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take up the average, if the checkpoint has one."""
        if "averaging_state" in checkpoint and self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
