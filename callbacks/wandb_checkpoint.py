"""The checkpoint of a run as a versioned W&B artifact."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException


class WandbCheckpoint(Callback):
    """When training ends, log the best checkpoint (the last, where none is the best) as an artifact of type ``model``.

    Runs of one name make versions ``v0``, ``v1``, ... of one artifact. Its metadata tell step and score. In
    offline mode it is staged on this machine until ``wandb sync``.

    Args:
        name: of the artifact, e.g. ``fst-streetshift``.
        aliases: besides W&B's ``latest``, e.g. ``seed0``.
        last: the checkpoint to log where no ModelCheckpoint kept a best one.

    Raises:
        MisconfigurationException: no logger is W&B's; when training ends, there is no checkpoint.
    """

    family = "wandb_checkpoint"

    def __init__(
        self, name: str = "model", aliases: list[str] | None = None, last: str | None = None
    ) -> None:
        self.name, self.aliases, self.last = name, aliases or [], last

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse before training what would fail after it."""
        if not any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            raise MisconfigurationException(
                "The checkpoint is to be a W&B artifact, but W&B is not among the loggers: set --wandb online or "
                "offline, or leave out --wandb_checkpoint"
            )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log it, on the first process."""
        if not trainer.is_global_zero:
            return
        kept = [
            c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.best_model_path
        ]
        path = Path(kept[0].best_model_path if kept else self.last or "")
        if not path.is_file():
            raise MisconfigurationException(
                f"No checkpoint to log as a W&B artifact: there is no file {path}"
            )
        import wandb

        score = kept[0].best_model_score if kept else None
        facts = {
            "monitor": kept[0].monitor if kept else None,
            "score": None if score is None else float(score),
            "steps": trainer.global_step,
        }
        artifact = wandb.Artifact(self.name, type="model", metadata=facts)
        artifact.add_file(str(path), name=path.name)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.log_artifact(artifact, aliases=["latest", *self.aliases])
